"""The frame of the report page: style, sections, and the script of its live form."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root{--bg:#fff;--fg:#1c2127;--dim:#68707a;--line:#dfe3e8;--card:#f7f8fa;--good:#1a7f37;--bad:#c0362c;
--c0:#2563c9;--c1:#e07b1a;--c2:#1f9e89;--c3:#b5428f;--c4:#5a9e2f;--c5:#7a5bd0;--c6:#c9a227;--c7:#c0362c;--c8:#3aa0c9;--c9:#8a7f72;--c10:#aab2bc}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e4e7eb;--dim:#98a1ac;--line:#30363d;--card:#1b1f25;--good:#4cc26a;--bad:#f0776c;
--c0:#6ea8fe;--c1:#f2a65a;--c2:#4fd1b8;--c3:#e58bc6;--c4:#8fce5f;--c5:#b09af5;--c6:#e6c65c;--c7:#f0776c;--c8:#74c8ea;--c9:#b8aea2;--c10:#5b646e}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px}h1{font-size:24px;margin:0}h2{font-size:16px;margin:0 0 8px}
header p,small,.none{color:var(--dim)}header p{margin:2px 0 20px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:16px;min-width:0}.wide{grid-column:1/-1}
svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:11px}svg .grid{stroke:var(--line)}
section p.note{color:var(--dim);font-size:13px;margin:6px 0 0}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
table{border-collapse:collapse;width:100%}
td,th{padding:4px 10px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tr:last-child td,tr:last-child th{border-bottom:0}th{font-weight:600;white-space:nowrap}
.numbers td:not(:first-child),.numbers th:not(:first-child){text-align:right;font-variant-numeric:tabular-nums}
.samples{table-layout:fixed;font-size:14px}.samples td{overflow-wrap:anywhere;padding-right:16px}
.right b{color:var(--good)}.wrong b{color:var(--bad)}
.scroll{overflow-x:auto}
"""

REFRESH = """
setInterval(async()=>{try{const r=await fetch(location.href);if(!r.ok)return;
const m=new DOMParser().parseFromString(await r.text(),'text/html').querySelector('main');
if(m)document.querySelector('main').replaceWith(m)}catch(e){}},3000)
"""
"""The live page asks for itself and swaps its content; when the master is gone, whoever answers instead, it keeps what it shows."""


def section(title: str, body: str, note: str = "", wide: bool = False) -> str:
    """A titled card; nothing if there is nothing to show."""
    if not body:
        return ""
    text = f'<p class="note">{note}</p>' if note else ""
    return f'<section{" class=wide" if wide else ""}><h2>{title}</h2><div class="scroll">{body}</div>{text}</section>'


def page(title: str, subtitle: str, sections: Sequence[str], live: bool) -> str:
    """The whole page; it loads nothing from anywhere."""
    script = f"<script>{REFRESH}</script>" if live else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head><body><main>'
        f'<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header><div class="cards">{"".join(sections)}</div></main>{script}'
        "</body></html>\n"
    )
