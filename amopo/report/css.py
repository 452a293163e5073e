"""The look of the page: one column, tables that scroll by themselves, light and dark, nothing from outside."""

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #595959; --line: #c9c9c9; --shade: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --paper: #161616; --soft: #b4b4b4; --line: #4a4a4a; --shade: #232323; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p, ul { max-width: 46rem; }
a { color: inherit; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; max-width: none; }
.caption, .soft { color: var(--soft); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.panels figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 4px; padding: .3rem; }
.panels img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
thead th { white-space: nowrap; border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
.values td { min-width: 7rem; max-width: 34rem; overflow-wrap: anywhere; }
.values thead th { white-space: normal; overflow-wrap: anywhere; }
.note { border-left: 4px solid var(--ink); padding: .2rem 0 .2rem .8rem; }
.sample { border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem; margin: 1rem 0; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: .8rem; }
.answers h4 { margin: 0; font-size: .85rem; color: var(--soft); font-weight: 600; }
pre { margin: .2rem 0; padding: .5rem; background: var(--shade); white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 24rem; overflow-y: auto; font: .875rem/1.45 ui-monospace, monospace; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print {
  body { max-width: none; }
  .panels figure, .sample, tr { break-inside: avoid; }
  pre { max-height: none; }
}
"""
