"""The web page in a Chromium, on a server of the bundled model that wants a key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Chromium, Page, chromium
from tests.served import Served, served

KEY = "the-key-of-this-test"
PARIS = "What is the capital of France?"
READY = "document.getElementById('state').dataset.state === 'ready'"
ANSWERED = "!document.querySelector('[aria-busy]') && document.querySelectorAll('.assistant .tools').length"
SHOWN = "document.querySelector('.assistant:last-child .prose').innerText"
STATUS = "Failed to load resource"  # what Chromium logs for every status that is not 2xx
HOSTILE = [
    "<img src=x onerror=hacked()>",
    "<script>hacked()</script></script><svg onload=hacked()>",
    "[a](javascript:hacked()) [b](JaVaScRiPt:hacked()) [c](data:text/html,<script>hacked()</script>)",
    '![d](https://example.com/x.png) <javascript:hacked()> [e](https://example.com/"onmouseover=hacked())',
    "| <b onclick=hacked()> | `</code><script>hacked()</script>` |\n|---|---|\n| <iframe srcdoc=x> | [f](vbscript:x) |",
    '```html"><img src=x onerror=hacked()>\n</code></pre><script>hacked()</script>\n```',
    "# <a href='javascript:hacked()'>g</a>\n> <style>*{display:none}</style>\n- <details open ontoggle=hacked()>",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with served(api_key_file=keys, sequences=2) as found:
        yield found


@pytest.fixture
def bare(browser: Chromium) -> Iterator[Page]:
    """A tab; at the end nothing must have complained."""
    page = browser.page()
    page.resize(1280, 860)
    page.do("Page.addScriptToEvaluateOnNewDocument", source="window.hacked = () => { window.wasHacked = true; }")
    yield page
    complaints, hacked = page.complaints, page.run("window.wasHacked === true")
    page.close()
    assert not complaints and not hacked


@pytest.fixture
def page(bare: Page, server: Served) -> Page:
    """The chat, with the key."""
    source = f"sessionStorage.setItem('hetero.key', '{KEY}')"
    bare.do("Page.addScriptToEvaluateOnNewDocument", source=source)
    bare.open(server.url + "/")
    bare.until(READY)
    return bare


def tolerate(page: Page, text: str) -> None:
    """Complaints that belong to the test; at least one has come."""
    assert any(text in one for one in page.complaints)
    page.complaints[:] = [one for one in page.complaints if text not in one]


def send(page: Page, text: str) -> None:
    page.run("document.getElementById('field').focus()")
    page.type(text)
    page.press("Enter")


def ask(page: Page, text: str) -> str:
    page.run("window.before = document.querySelector('.assistant:last-child')")
    send(page, text)
    page.until(f"document.querySelector('.assistant:last-child') !== before && {ANSWERED}")
    return str(page.run(SHOWN))


def stream(*deltas: dict[str, str]) -> dict[str, Any]:
    """A whole answer, for `Page.intercept`."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return response(200, body, "text/event-stream")


def response(status: int, body: str, kind: str = "application/json", **headers: str) -> dict[str, Any]:
    fields = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    listed = [{"name": name, "value": value} for name, value in fields.items()]
    return {"responseCode": status, "responseHeaders": listed, "body": body}


def endless(page: Page, server: Served) -> None:
    """Answers of the model go on to the end of the context: what would end them is forbidden."""
    text = {"content": "<｜end▁of▁sentence｜>", "parse_special": True, "add_special": False}
    (end,) = server.post("/tokenize", text, {"authorization": f"Bearer {KEY}"})["tokens"]
    page.amend("/v1/chat/completions", lambda body: body | {"logit_bias": {str(end): -100}})


def test_a_message_streams_and_is_stopped(page: Page, server: Served) -> None:
    endless(page, server)
    page.run(
        "window.lengths = new Set(); new MutationObserver(() => lengths.add("
        "document.querySelector('.assistant .prose')?.textContent.length)"
        ").observe(document.getElementById('thread'), {childList: true, subtree: true, characterData: true})"
    )
    send(page, PARIS)
    page.until("lengths.size > 5 && document.querySelector('.assistant[aria-busy]') !== null")
    page.until("document.querySelector('.sequences').innerText.includes('answers')")
    assert page.run("document.getElementById('send').hidden && !document.getElementById('stop').hidden")
    page.press("Escape")
    page.until(ANSWERED)
    assert page.run("document.querySelector('.ending').innerText") == "Stopped"
    assert "tokens/s" in page.run("document.querySelector('.figures').innerText")
    text = page.run(SHOWN)
    assert len(text) > 20
    panel = f"fetch('panel', {{headers: {{authorization: 'Bearer {KEY}'}}}}).then((answer) => answer.json())"
    page.until(f"{panel}.then((found) => found.now.running === 0)")
    page.reload()
    page.until("document.querySelector('.assistant .tools')")
    assert page.run(SHOWN) == text


def test_conversations_stay_and_answers_have_versions(page: Page) -> None:
    assert "Paris" in ask(page, PARIS)
    page.reload()
    page.until("document.querySelector('.assistant .tools')")
    assert "Paris" in page.run(SHOWN)
    assert page.run("document.querySelector('#conversations a').innerText") == PARIS
    page.run("document.querySelector('[aria-label=\"Answer again\"]').click()")
    page.until(f"document.querySelector('.assistant .versions')?.innerText.includes('2/2') && {ANSWERED}")
    page.run("document.querySelector('[aria-label=\"Earlier version\"]').click()")
    page.until("document.querySelector('.assistant .versions').innerText.includes('1/2')")
    page.run("document.querySelector('[aria-label=\"Edit and send again\"]').click()")
    assert page.run("document.getElementById('field').value") == PARIS
    page.run("document.getElementById('field').value = ''")
    assert "Rome" in ask(page, "What is the capital of Italy?")
    assert page.run("document.querySelectorAll('.turn').length") == 2
    assert "2/2" in page.run("document.querySelector('.user .versions').innerText")
    page.press("n", "alt")
    page.until("document.querySelector('.welcome')")
    page.run("document.querySelector('#conversations a').click()")
    assert "Rome" in page.until(SHOWN)


def test_drafts_and_settings_stay(page: Page) -> None:
    page.run("document.getElementById('field').focus()")
    page.type("half a thought")
    page.reload()
    assert page.run("document.getElementById('field').value") == "half a thought"
    page.press("s", "alt")
    page.type("Answer briefly.")
    page.run("document.querySelector('#settings input[type=number]').value = '0.5'")
    page.run("document.querySelector('#settings form').requestSubmit()")
    bodies: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        bodies.append(json.loads(request["postData"]))
        return stream({"reasoning_content": "so *then*"}, {"content": "yes"})

    page.intercept("/v1/chat/completions", answer)
    page.reload()
    page.press("Enter")
    page.until(ANSWERED)
    assert bodies[0]["messages"] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "half a thought"},
    ]
    assert bodies[0]["temperature"] == 0.5 and "top_p" not in bodies[0]
    assert page.run("document.querySelector('.reasoning').open") is False
    assert page.run("document.querySelector('.reasoning em').textContent") == "then"


def test_what_a_model_writes_is_text(page: Page) -> None:
    page.intercept("/v1/chat/completions", lambda request: stream(*({"content": one} for one in "\n\n".join(HOSTILE))))
    ask(page, HOSTILE[0])
    assert "<img src=x onerror=hacked()>" in page.run(SHOWN)
    found = page.run("[...document.querySelectorAll('#thread *')].map((one) => one.localName)")
    assert not {"img", "script", "iframe", "style", "b", "link", "object"} & set(found)
    assert page.run("[...document.querySelectorAll('#thread *')].every((one) => [...one.attributes].every("
                    "({name}) => !name.startsWith('on') && name !== 'style' && name !== 'srcdoc'))")  # fmt: skip
    links = page.run("[...document.querySelectorAll('#thread a')].map((one) => [one.href, one.rel, one.target])")
    assert links and all(address.startswith("https://example.com/") for address, _, _ in links)
    assert all(rel == "noopener noreferrer nofollow" and target == "_blank" for _, rel, target in links)


def test_what_is_stored_is_text(page: Page, tmp_path: Path) -> None:
    turns: list[Any] = [{"id": f"t{at}", "parent": None, "role": "user", "text": one} for at, one in enumerate(HOSTILE)]
    for at, one in enumerate(HOSTILE):
        error = {"kind": "constructor", "message": one, "wait": "x"}
        turns.append(
            {"id": f"a{at}", "parent": f"t{at}", "role": "assistant", "text": one, "finish": one, "error": error}
        )
        turns.append({"id": HOSTILE[0], "parent": "a0", "role": one, "text": {"x": 1}})
    hostile = {"id": "evil", "title": HOSTILE[1], "tip": "a1", "changed": "x", "turns": turns}
    page.run(f"localStorage.setItem('hetero.conversation.evil', JSON.stringify({json.dumps(hostile)}))")
    broken = {"hetero.conversation.x": "{", "hetero.conversation.y": "[1]", "hetero.settings": '{"temperature": "<b>"}'}
    for name, value in broken.items():
        page.run(f"localStorage.setItem({json.dumps(name)}, {json.dumps(value)})")
    page.reload()
    page.run("document.querySelector('#conversations a').click()")
    page.until("document.querySelector('.failure')")
    assert page.run("document.querySelectorAll('#conversations li').length") == 1
    assert HOSTILE[1] in page.run("document.getElementById('title').textContent")
    file = tmp_path / "import.json"
    hostile["id"] = "other"
    file.write_text(json.dumps({"format": "hetero conversations", "version": 1, "conversations": [hostile, 1, None]}))
    page.choose("#file", file)
    page.until("document.querySelectorAll('#conversations li').length === 2")
    assert not page.run("document.querySelector('#thread :is(img, script, iframe, style)')")


def test_a_key_is_asked_for(bare: Page, server: Served) -> None:
    bare.open(server.url + "/")
    opened = "document.getElementById('key').open"
    bare.until(f"{opened} && document.getElementById('state').dataset.state === 'locked'")
    bare.press("Escape")
    bare.until(f"!{opened}")
    send(bare, PARIS)
    bare.until(f"{opened} && document.querySelector('.failure')")
    bare.type("a-wrong-one")
    bare.press("Enter")
    bare.until(f"{opened} && document.getElementById('key').innerText.includes('does not take')")
    bare.until(ANSWERED)
    bare.type(KEY)
    bare.press("Enter")
    bare.until(f"{ANSWERED} && !document.querySelector('.failure')")
    assert "Paris" in bare.run(SHOWN)
    assert KEY not in bare.run("JSON.stringify(localStorage)")
    tolerate(bare, STATUS)


def test_failures_are_told_and_nothing_is_lost(page: Page) -> None:
    words = "one two three " * 500
    send(page, words)
    page.until("document.querySelector('.failure')")
    told = page.run("document.querySelector('.failure').innerText")
    assert "The context is full" in told and "1,024" in told and "1,50" in told
    assert page.run("document.querySelector('.said').textContent") == words
    busy = json.dumps({"error": {"message": "64 requests wait", "code": "queue_full"}})
    page.intercept("/v1/chat/completions", lambda request: response(429, busy, retry_after="7"))
    page.press("n", "alt")
    page.type(PARIS)  # at once
    page.press("Enter")
    page.until("document.querySelector('.failure')?.innerText.includes('busy')")
    page.until("document.querySelector('.failure .strong').innerText.includes('in 6 s')")
    page.answers[:] = [
        lambda request: stream({"content": "here"}) | {"body": 'data: {"choices": [{"delta": {"content": "par'}
    ]
    page.run("document.querySelector('.failure .strong').click()")
    page.until("document.querySelector('.failure')?.innerText.includes('broke off')")
    page.answers.clear()
    page.do("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    page.run("document.querySelector('.failure .strong').click()")
    page.until("document.querySelector('.failure')?.innerText.includes('does not answer')")
    page.until("document.getElementById('state').dataset.state === 'gone'")
    page.do("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.run("document.querySelector('.failure .strong').click()")
    page.until(f"{ANSWERED} && !document.querySelector('.failure')")
    assert "Paris" in page.run(SHOWN)
    tolerate(page, STATUS)


def test_a_full_storage_is_told(page: Page) -> None:
    page.run("Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }")
    assert "Paris" in ask(page, PARIS)
    assert "storage is full" in page.run("document.getElementById('notices').innerText")
    page.run("document.querySelector('[aria-label=Delete]').click()")
    page.until("document.querySelector('.welcome')")
    page.run("[...document.querySelectorAll('.notice button')].find((one) => one.innerText === 'Undo').click()")
    assert page.run("document.querySelectorAll('#conversations li').length") == 1


def test_the_keyboard_is_enough(page: Page) -> None:
    focused = "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
    assert page.run(focused) == "field"
    page.run("document.querySelector('.skip').focus()")
    seen = []
    for _ in range(11):
        page.press("Tab")
        seen.append(page.run(focused))
        style = "getComputedStyle(document.activeElement)"
        assert page.run(f"{style}.outlineStyle !== 'none' || document.activeElement.id === 'field'"), seen
    assert {"new", "export", "import", "toggle-sidebar", "toggle-panel", "field"} <= set(seen)
    page.press("m", "alt")
    page.type(PARIS)
    page.press("Enter", "shift")
    page.type("Please.")
    assert page.run("document.getElementById('field').value") == PARIS + "\nPlease."
    page.press("Enter")
    page.until(ANSWERED)
    page.press("ArrowUp")
    assert page.run("document.getElementById('field').value") == PARIS + "\nPlease."
    page.press("Escape")
    assert page.run("document.getElementById('field').value") == ""
    page.press("r", "alt")
    page.until(f"document.querySelector('.versions') && {ANSWERED}")
    page.press("ArrowUp", "alt")
    assert page.run("document.activeElement.className") == "turn assistant"
    page.press("p", "alt")
    assert page.run("document.getElementById('panel').hidden")
    page.press("/", "alt")
    assert page.run("document.getElementById('shortcuts').open")
    page.press("Escape")
    assert not page.run("document.getElementById('shortcuts').open")


def test_it_fits_a_phone(page: Page) -> None:
    page.resize(360, 740, phone=True)
    table = f"|{'a|' * 20}\n|{'-|' * 20}\n|{'wide cell|' * 20}"
    wide = f"{'long' * 60}\n\n```\n{'code ' * 60}\n```\n\n{table}\n\nhttps://a.b/{'x' * 200}"
    page.intercept("/v1/chat/completions", lambda request: stream({"reasoning_content": wide}, {"content": wide}))
    page.run("document.getElementById('field').focus()")
    page.type("word" * 100)
    page.run("document.getElementById('composer').requestSubmit()")
    page.until(ANSWERED)
    page.run("document.querySelector('.reasoning').open = true")
    widths = "[document.documentElement.scrollWidth, document.getElementById('scroller').scrollWidth]"
    for name in ("", "sidebar", "panel"):
        if name:
            page.run(f"document.getElementById('toggle-{name}').click()")
            assert not page.run(f"document.getElementById('{name}').hidden")
        assert max(page.run(widths)) <= 360
        page.run("document.getElementById('backdrop').click()")
    page.run("document.querySelector('[data-shows=settings]').click()")
    assert page.run("document.getElementById('settings').scrollWidth") <= 360
    page.resize(320, 568, phone=True)
    fields = "[...document.querySelectorAll('#settings input, #settings select')]"
    assert page.run(f"Math.min(...{fields}.map((one) => one.clientWidth))") > 200, "there is room for what it holds"


TO = 'target="_blank" rel="noopener noreferrer nofollow"'
MARKDOWN = {
    "a **b** _c_ ~~d~~ `e*f*`": "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e*f*</code></p>",
    "***a** b*": "<p><em><strong>a</strong> b</em></p>",
    "2 * 3 * 4 and snake_case_name": "<p>2 * 3 * 4 and snake_case_name</p>",
    "***a* b** ___c___": "<p><strong><em>a</em> b</strong> <em><strong>c</strong></em></p>",
    "**never": "<p>**never</p>",
    r"\*a\* \(x_1 * y_1\) $$a_b$$": '<p>*a* <span class="math">\\(x_1 * y_1\\)</span>'
    ' <span class="math">$$a_b$$</span></p>',
    "# a #\n### b": "<h3>a</h3><h5>b</h5>",
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "- a\n- b\n  - c\n- [x] d": '<ul data-marker="-"><li>a</li><li>b<ul data-marker="-"><li>c</li></ul></li>'
    '<li><input type="checkbox" disabled="" checked="" aria-label="task">d</li></ul>',
    "3. a\n4. b": '<ol data-marker="." start="3"><li>a</li><li>b</li></ol>',
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "---": "<hr>",
    "x (https://a.b/c).": f'<p>x (<a href="https://a.b/c" {TO}>https://a.b/c</a>).</p>',
    "[a **b**](http://c.d/e_f_g \"t\")": f'<p><a href="http://c.d/e_f_g" {TO}>a <strong>b</strong></a></p>',
    "[a](javascript:b)": "<p>[a](javascript:b)</p>",
    "<b>&amp;": "<p>&lt;b&gt;&amp;amp;</p>",
}  # fmt: skip
LONG = (
    "# T\n\nOne **two**\nthree\n\n- a\n- b\n\n  c\n- d\n\n1. x\n2. y\n   ```py\n   z = 1\n   ```\n\n"
    "```python\ndef f():\n    return '``'\n```\n> q\n\n|a|b|\n|-|-:|\n|1|2|\n\nlast `x` ~~~\n~~~\nopen\n"
)


def test_markdown(page: Page) -> None:
    script = """(async (sources) => {
        const { draw } = await import('./prose.js');
        return sources.map((source) => {
            const place = document.createElement('div');
            draw(place, source);
            return place.innerHTML;
        });
    })(%s)"""
    found = page.run(script % json.dumps(list(MARKDOWN)))
    assert dict(zip(MARKDOWN, found, strict=True)) == MARKDOWN


def test_markdown_that_grows_is_what_it_is_at_once(page: Page) -> None:
    script = """(async (source) => {
        const { draw, Prose } = await import('./prose.js');
        const [whole, grown] = [document.createElement('div'), document.createElement('div')];
        draw(whole, source);
        const prose = new Prose(grown);
        let first = null, moved = 0;
        for (let at = 0; at < source.length; at += 3) {
            prose.append(source.slice(at, at + 3));
            await new Promise(requestAnimationFrame);
            if (source.length / 2 < at) first ??= grown.firstChild;
            moved += first !== null && grown.firstChild !== first;
        }
        prose.finish();
        return [whole.innerHTML, grown.innerHTML, moved, first !== null];
    })(%s)"""
    whole, grown, moved, was = page.run(script % json.dumps(LONG))
    assert grown == whole and "figure" in whole and "<table>" in whole
    assert was and moved == 0  # what is complete is not drawn again


def test_events_are_found_however_they_are_cut(page: Page) -> None:
    text = '\ufeff: note\r\n\r\ndata: {"a": "é€😀"}\n\nevent: x\rdata:b\r\rdata: c\r\ndata: d\r\n\r\ndata\n\ndata: lost'
    script = """(async (text) => {
        const { EventParser } = await import('./events.js');
        const bytes = new TextEncoder().encode(text);
        const cuts = [];
        for (let size = 1; size <= bytes.length; size++) {
            const parser = new EventParser();
            const found = [];
            for (let at = 0; at < bytes.length; at += size) found.push(...parser.push(bytes.slice(at, at + size)));
            cuts.push(JSON.stringify(found));
        }
        return [...new Set(cuts)];
    })(%s)"""
    assert page.run(script % json.dumps(text)) == [
        json.dumps(['{"a": "é€😀"}', "b", "c\nd", ""], ensure_ascii=False, separators=(",", ":"))
    ]


def test_long_code_is_cut_for_the_eye_only(page: Page) -> None:
    script = """(async () => {
        const { Prose } = await import('./prose.js');
        const place = document.createElement('div');
        document.body.append(place);
        const prose = new Prose(place);
        const lines = Array.from({length: 250}, (_, at) => `line ${at}`);
        for (const line of ['```', ...lines, '```', 'end']) {
            prose.append(line + '\\n');
            if (line.endsWith('9')) await new Promise(requestAnimationFrame);
        }
        prose.finish();
        const found = [place.querySelector('code').innerText === lines.join('\\n'),
            place.querySelectorAll('code > span').length, place.lastChild.textContent];
        place.remove();
        return found;
    })()"""
    assert page.run(script) == [True, 3, "end"]
