"""hetero: DeepSeek-V3-class mixture-of-experts models on one workstation."""
