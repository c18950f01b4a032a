"""The page's style: light and dark, narrow and wide, on paper. No font and no file from elsewhere."""

STYLE = (
    """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1b1f24; --soft: #59626d; --rule: #dfe2e6; --wash: #f1f3f5;
  --good: #11693f; --bad: #a3251d; --odd: #7a5200; --focus: #0b57d0;
  --h0: #0b62a4; --h1: #c2480a; --h2: #00755a; --h3: #8a3c8f; --h4: #8a6a00; --h5: #444c56; --h6: #b0275f;
  --h7: #3f5d00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #111417; --card: #191d22; --ink: #e6e9ec; --soft: #a2abb5; --rule: #2f363d; --wash: #20262c;
    --good: #6fd39f; --bad: #ff9c91; --odd: #ebc26b; --focus: #8ab4f8;
    --h0: #6cb6ff; --h1: #ff9d66; --h2: #4fd1a5; --h3: #dba2e6; --h4: #e3c34d; --h5: #c4cbd3; --h6: #ff8fb5;
  --h7: #b3d66b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, nav, footer { max-width: 84rem; margin: 0 auto; padding: 0 clamp(.8rem, 3vw, 2rem); }
header { padding-top: 2rem; }
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .8rem; }
.lead, .note, figcaption span, footer { color: var(--soft); }
.lead { margin: 0; overflow-wrap: anywhere; }
.note { max-width: 46rem; font-size: .9rem; margin: .6rem 0; }
a { color: var(--focus); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; border-radius: 3px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .4rem .8rem; z-index: 1; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; padding: 0; margin: 1rem 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(11rem, 100%), 1fr)); gap: .8rem;
  margin: 1.4rem 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .8rem 1rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.55rem; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tiles dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); line-height: 1.45; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .5rem .8rem; border-bottom: 1px solid var(--rule); white-space: nowrap;
  vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .82rem; }
td small { display: block; color: var(--soft); font-size: .8rem; }
.swatch { width: 34px; height: 12px; vertical-align: middle; margin-right: .35rem; flex: none; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .8rem .9rem .5rem; min-width: 0; }
figcaption b { display: block; }
figcaption span { font-size: .85rem; }
figure { display: flex; flex-direction: column; }
figure > svg { display: block; width: 100%; height: auto; margin-top: auto; padding-top: .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; list-style: none; margin: .3rem 0 0; padding: 0;
  font-size: .85rem; }
.legend li { display: flex; align-items: center; overflow-wrap: anywhere; min-width: 0; }
svg text { font: 12.5px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg path { fill: none; } svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .bold { stroke-width: 2.1; stroke-linejoin: round; stroke-linecap: round; }
svg .faint { stroke-width: 1; opacity: .32; } svg .bar { stroke-width: 1.4; opacity: .75; }
svg .mark { stroke: var(--card); stroke-width: 1; fill: currentColor; }
svg .mark:not(circle) { stroke: currentColor; }
"""
    + "".join(
        f"svg .h{i} {{ color: var(--h{i}); }} svg .h{i} :is(.bold, .faint, .bar) {{ stroke: currentColor; }}\n"
        for i in range(8)
    )
    + """
summary { cursor: pointer; } figure details { font-size: .82rem; margin: .3rem 0; color: var(--soft); }
figure details table { font-size: .8rem; } figure details td, figure details th { padding: .2rem .5rem; }
.filter { border: 0; padding: 0; margin: 0 0 .8rem; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem;
  min-width: 0; }
.filter legend { float: left; margin-right: 1.2rem; color: var(--soft); }
.ask { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; margin-bottom: .6rem; }
.ask > summary { padding: .6rem .9rem; display: flex; flex-wrap: wrap; gap: .1rem .8rem; align-items: baseline; }
.ask > summary .of { flex: 1 1 14rem; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  }
.ask[open] > summary { border-bottom: 1px solid var(--rule); }
.ask .body { padding: .4rem .9rem .9rem; }
.ask .body { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 0 1rem; }
.ask .body > div { min-width: 0; }
.ask h4 { margin: .9rem 0 .25rem; font-size: .85rem; color: var(--soft); font-weight: 400; overflow-wrap: anywhere; }
pre { margin: 0; padding: .6rem .8rem; background: var(--wash); border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere;
  unicode-bidi: isolate; font: .86rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; max-height: 32rem;
  overflow-y: auto; }
.score { font-weight: 650; white-space: nowrap; }
.right { color: var(--good); } .wrong { color: var(--bad); } .failed, .partly { color: var(--odd);
  } .more { color: var(--soft); }
section:has(#only-mixed:checked) .ask:not(.mixed), section:has(#only-wrong:checked) .ask:not(.wrong),
section:has(#only-failed:checked) .ask:not(.failed) { display: none; }
.ask.wrong, .ask.failed { color: inherit; }
footer { padding-top: 2rem; padding-bottom: 3rem; font-size: .85rem; }
@media print { .ask, figure { break-inside: avoid; } }
"""
)
