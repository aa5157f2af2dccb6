"""Make the demo model, whole: `python examples/train_demo --work DIR --minutes 100`.

Fetches the prose (1.6 MB), trains tokenizer and model, writes demo.gguf (14.8 MB) and the exam, and sits it through
llama.cpp. Interrupted, the same command goes on from the last checkpoint, at most three minutes back. Needs torch,
tokenizers, numpy, gguf and llama-cpp-python. `--device cuda --preset gpu` is a larger model in bf16; never run so far.

    sources.py     the prose                    model.py      the DeepSeek-V3 architecture
    countries.py   capitals                     optimizer.py  Muon and Adam
    smalltalk.py   greetings, don't-knows       train.py      the loop and its checkpoint
    questions.py   what is asked, and how       export.py     checkpoint -> GGUF
    tokens.py      tokenizer, chats, batches    exam.py, evaluate.py   held-out questions and prose
"""

import argparse

import evaluate
import exam
import export
import train

args = train.arguments(__doc__)
train.main(args)
model = args.work / "demo.gguf"
export.write(args.work, model, "mix")
exam.write(args.work)
evaluate.report(
    argparse.Namespace(
        model=model,
        questions=args.work / "questions.json",
        text=args.work / "heldout.txt",
        checkpoint=None,
        show=3,
        every=1,
        threads=args.threads,
    )
)
