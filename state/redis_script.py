"""The counting script: Lua 5.1 generated for one schema, with the merge of each shared kind unrolled.

Unrolled because a loop over a table of numbers costs 1.6 times as much (docs/decisions/0003).
Keys: fences, then per kind of key, users, items. Arguments: how many of each (fences, kinds, users, items), the expected and the
new offset of every fence, then one string of packed values per kind, for users and for items. Everything that can fail is done
before the first write, since Redis does not undo a script. Replies `{OK, merged...}`, `{WRONG_FENCE, held...}` or
`{FOREIGN, kind, bytes}`.
"""

from state import cells, stores

OK, WRONG_FENCE, FOREIGN = 0, 1, 2
KEYS_PER_CALL = 500
PIECE = 64

_HEAD = """\
local un, pk, sub, call = struct.unpack, struct.pack, string.sub, redis.call
local function merged(merge, first, n, deltas, bytes)
  local zero, out = string.rep('\\0', bytes), {}
  for i = 0, n - 1, %(step)d do
    local last = math.min(n, i + %(step)d) - 1
    local held = call('MGET', unpack(KEYS, first + i, first + last))
    for j = i, last do
      local base = held[j - i + 1] or zero
      if #base ~= bytes then return nil, #base end
      out[j + 1] = merge(base, deltas, j * bytes + 1)
    end
  end
  return out
end
local function put(first, n, value)
  for i = 0, n - 1, %(step)d do
    local words, w = {}, 0
    for j = i, math.min(n, i + %(step)d) - 1 do
      words[w + 1], words[w + 2], w = KEYS[first + j], value(j), w + 2
    end
    call('MSET', unpack(words))
  end
end
local function rows(packed, bytes)
  return function(j) return sub(packed, j * bytes + 1, (j + 1) * bytes) end
end
local function each(values)
  return function(j) return values[j + 1] end
end
"""

_SECTIONS = """\
local nf = tonumber(ARGV[1])
local held, right = {%(wrong)d}, true
for i = 1, nf do
  held[i + 1] = call('GET', KEYS[i]) or '-1'
  right = right and held[i + 1] == ARGV[%(pairs)d + 2 * i - 1]
end
if not right then return held end
local n, first, packed, out, bytes, key = {}, {}, {}, {}, 0, nf + 1
for s = 0, %(last)d do
  n[s], first[s], packed[s] = tonumber(ARGV[s + 2]), key, ARGV[%(pairs)d + 2 * nf + s + 1]
  key = key + n[s]
end
"""


def merge_function(name: str, layout: cells.Layout) -> str:
    """Lua source of `local function NAME(base, deltas, at)`: `cells.merge` of a packed cell and the packed delta at byte `at`.

    Lua allows 200 locals in a function, so a wide cell is merged in pieces of 64 numbers.
    """
    out, calls = [], []
    for start in range(0, layout.width, PIECE):
        stop = min(start + PIECE, layout.width)
        piece = f"{name}_{start}"
        given = "" if start == 0 else ", b0, d0, d2"
        out.append(_piece(piece, layout, start, stop, given))
        results = f"p{start}, b0, d0, d2" if start == 0 else f"p{start}"
        calls.append(f"  local {results} = {piece}(base, deltas, at{given})")
    joined = " .. ".join(f"p{start}" for start in range(0, layout.width, PIECE))
    return "\n".join([*out, f"local function {name}(base, deltas, at)", *calls, f"  return {joined}", "end", ""])


def _piece(name: str, layout: cells.Layout, start: int, stop: int, given: str) -> str:
    numbers = range(start, stop)
    names = {side: ", ".join(f"{side}{c}" for c in numbers) for side in "bd"}
    shape = f"'<{'d' * len(numbers)}'"
    lines = [
        f"local function {name}(base, deltas, at{given})",
        f"  local {names['b']} = un({shape}, base, {8 * start + 1})",
        f"  local {names['d']} = un({shape}, deltas, at + {8 * start})",
        "  local t = b0",
        "  if d0 > t then t = d0 end",
    ]
    for w, window in enumerate(layout.windows):
        block = range(cells.HEAD + w * layout.columns, cells.HEAD + (w + 1) * layout.columns)
        mine = [c for c in numbers if c in block]
        if not mine:
            continue
        keep, add = "", ""
        if window.kind == "decay":
            lines.append(f"  local k{w}, a{w} = 2 ^ (-(t - b0) / {window.size!r}), 2 ^ (-(t - d0) / {window.size!r})")
            keep, add = f" * k{w}", f" * a{w}"
        elif window.kind == "last":
            lines.append(f"  local k{w} = ({1.0 - 1.0 / window.size!r}) ^ d2")
            keep = f" * k{w}"
        lines += [f"  b{c} = b{c}{keep} + d{c}{add}" for c in mine]
    if start == 0:
        lines.append("  if d1 > b1 then b1 = d1 end")
    values = ", ".join("t" if c == 0 else f"b{c}" for c in numbers)
    back = ", b0, d0, d2" if start == 0 else ""
    return "\n".join([*lines, f"  return pk({shape}, {values}){back}", "end"])


def source(schema: stores.Schema) -> str:
    """The whole script for one schema."""
    kinds = len(schema.layouts)
    pairs = 1 + kinds + 2
    out = [_HEAD % {"step": KEYS_PER_CALL}, "local merge = {}"]
    merging, writing, reply = [], [], [str(OK)]
    for k, (layout, owned) in enumerate(zip(schema.layouts, schema.owned, strict=True)):
        if owned:
            writing.append(f"put(first[{k}], n[{k}], rows(packed[{k}], {8 * layout.width}))")
            reply.append("''")
            continue
        out += ["do", merge_function("whole", layout), f"merge[{k}] = whole", "end"]
        merging += [
            f"out[{k}], bytes = merged(merge[{k}], first[{k}], n[{k}], packed[{k}], {8 * layout.width})",
            f"if not out[{k}] then return {{{FOREIGN}, {k}, bytes}} end",
        ]
        writing.append(f"put(first[{k}], n[{k}], each(out[{k}]))")
        reply.append(f"table.concat(out[{k}])")
    for s, size in ((kinds, schema.user_bytes), (kinds + 1, schema.item_bytes)):
        writing.append(f"put(first[{s}], n[{s}], rows(packed[{s}], {size}))")
    sections = _SECTIONS % {"wrong": WRONG_FENCE, "pairs": pairs, "last": kinds + 1}
    moving = f"for i = 1, nf do call('SET', KEYS[i], ARGV[{pairs} + 2 * i]) end"
    return "\n".join([*out, sections, *merging, moving, *writing, f"return {{{', '.join(reply)}}}", ""])
