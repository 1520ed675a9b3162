# Definitions of jq's functions, in terms of those that are metered. Where
# nothing else is said they are those of gojq (MIT license, (c) itchyny).
def map(f): [.[] | f];
def map_values(f): .[] |= f;
def add(f): [f] | add;
def in(xs): . as $x | xs | has($x);
def recurse: recurse(.[]?);
def to_entries: [keys[] as $k | {key: $k, value: .[$k]}];
def from_entries: map({(.key // .Key // .name // .Name):
  if has("value") then .value else .Value end}) | add // {};
def with_entries(f): to_entries | map(f) | from_entries;
def min_by(f): _min_by(map([f]));
def max_by(f): _max_by(map([f]));
def sort_by(f): _sort_by(map([f]));
def group_by(f): _group_by(map([f]));
def unique_by(f): _unique_by(map([f]));
def combinations:
  if length == 0 then [] else .[0][] as $x | [$x] + (.[1:] | combinations) end;
def walk(f):
  def _walk: if type == "array" then map(_walk) elif type == "object" then map_values(_walk) end | f;
  _walk;
def first: .[0];
def last: .[-1];
def last(g): reduce g as $x ([]; [$x]) | .[];
def nth($n): .[$n];
def all: all(.[]; .);
def all(y): all(.[]; y);
def any: any(.[]; .);
def any(y): any(.[]; y);
def del(f): delpaths([path(f)]);
def paths: path(..) | select(. != []);
def paths(f): path(.. | select(f)) | select(. != []);
def pick(f): . as $v | reduce path(f) as $p (null; setpath($p; $v | getpath($p)));
def IN(s): any(s == .; .);
def IN(src; s): any(src == s; .);
# Of regular expressions; m are the matches, s the texts beside them.
def _capture(m): m[] | .captures | _captures;
def _scan(m): m[] | if .captures == [] then .string else [.captures[].string] end;
def _replace(m; str):
  [m[] | .before + (if .match then .match.captures | _captures
    | [str] | if length == 1 then .[0] else error("the replacement must be one text") end else "" end)] | add;
