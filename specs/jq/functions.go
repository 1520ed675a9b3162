package jq

// class says how a function of jq is made deterministic and bounded.
type class uint8

const (
	// free: costs no more than its instructions, which are counted.
	free class = iota + 1
	// metered: gojq's own, after what it costs was charged (costs).
	metered
	// defined: defined in the prelude, in terms of the others.
	defined
	// pattern: takes a regular expression, which is a literal.
	pattern
	// layout: takes the layout of a time, which is a literal.
	layout
	// path: gives paths, whose length is charged.
	path
	// refused: depends on more than its arguments, or its cost cannot be told.
	refused
)

// classes has every function of gojq, by name and number of arguments; a test
// fails when a new version brings one that nobody has thought about.
var classes = map[string]class{
	"empty/0": free, "error/0": free, "error/1": free, "not/0": free, "type/0": free, "select/1": free,
	"recurse/1": free, "recurse/2": free, "while/2": free, "until/2": free, "repeat/1": free,
	"range/1": free, "range/2": free, "range/3": free, "first/1": free, "isempty/1": free,
	"limit/2": free, "skip/2": free, "nth/2": free, "any/2": free, "all/2": free,
	"arrays/0": free, "objects/0": free, "iterables/0": free, "booleans/0": free, "numbers/0": free, "finites/0": free,
	"normals/0": free, "strings/0": free, "nulls/0": free, "values/0": free, "scalars/0": free,
	"abs/0": free, "floor/0": free, "round/0": free, "ceil/0": free, "trunc/0": free, "sqrt/0": free, "fabs/0": free,
	"rint/0": free, "nearbyint/0": free, "fmin/2": free, "fmax/2": free, "fmod/2": free,
	"infinite/0": free, "isfinite/0": free, "isinfinite/0": free, "nan/0": free, "isnan/0": free, "isnormal/0": free,
	"toboolean/0": free, "gmtime/0": free, "mktime/0": free,
	"todateiso8601/0": free, "todate/0": free,

	"length/0": metered, "utf8bytelength/0": metered, "keys/0": metered, "has/1": metered, "add/0": metered,
	"tonumber/0": metered, "tostring/0": metered, "reverse/0": metered, "contains/1": metered, "inside/1": metered,
	"indices/1": metered, "index/1": metered, "rindex/1": metered, "startswith/1": metered, "endswith/1": metered,
	"ltrimstr/1": metered, "rtrimstr/1": metered, "trimstr/1": metered, "ltrim/0": metered, "rtrim/0": metered,
	"trim/0": metered, "explode/0": metered, "implode/0": metered, "split/1": metered, "join/1": metered,
	"ascii_downcase/0": metered, "ascii_upcase/0": metered, "tojson/0": metered, "fromjson/0": metered,
	"flatten/0": metered, "flatten/1": metered, "min/0": metered, "max/0": metered, "sort/0": metered, "unique/0": metered,
	"setpath/2": metered, "delpaths/1": metered, "getpath/1": metered, "transpose/0": metered, "bsearch/1": metered,
	"fromdateiso8601/0": metered, "fromdate/0": metered,

	"map/1": defined, "map_values/1": defined, "add/1": defined, "in/1": defined, "recurse/0": defined,
	"to_entries/0": defined, "from_entries/0": defined, "with_entries/1": defined, "min_by/1": defined, "max_by/1": defined,
	"sort_by/1": defined, "group_by/1": defined, "unique_by/1": defined, "combinations/0": defined, "walk/1": defined,
	"first/0": defined, "last/0": defined, "last/1": defined, "nth/1": defined, "all/0": defined, "all/1": defined,
	"any/0": defined, "any/1": defined, "del/1": defined, "paths/0": defined, "paths/1": defined, "pick/1": defined,
	"IN/1": defined, "IN/2": defined,

	"test/1": pattern, "test/2": pattern, "match/1": pattern, "match/2": pattern, "capture/1": pattern, "capture/2": pattern,
	"scan/1": pattern, "scan/2": pattern, "split/2": pattern, "splits/1": pattern, "splits/2": pattern,
	"sub/2": pattern, "sub/3": pattern, "gsub/2": pattern, "gsub/3": pattern,

	"strftime/1": layout, "strptime/1": layout, "path/1": path,

	"now/0": refused, "localtime/0": refused, "strflocaltime/1": refused, "env/0": refused, "input/0": refused,
	"inputs/0": refused, "debug/0": refused, "debug/1": refused, "stderr/0": refused, "input_filename/0": refused,
	"input_line_number/0": refused, "halt/0": refused, "halt_error/0": refused, "halt_error/1": refused,
	"modulemeta/0": refused, "builtins/0": refused, "get_search_list/0": refused, "format/1": refused,
	"sin/0": refused, "cos/0": refused, "tan/0": refused, "asin/0": refused, "acos/0": refused, "atan/0": refused,
	"sinh/0": refused, "cosh/0": refused, "tanh/0": refused, "asinh/0": refused, "acosh/0": refused, "atanh/0": refused,
	"significand/0": refused, "cbrt/0": refused, "exp/0": refused, "exp10/0": refused, "exp2/0": refused, "expm1/0": refused,
	"frexp/0": refused, "modf/0": refused, "log/0": refused, "log10/0": refused, "log1p/0": refused, "log2/0": refused,
	"logb/0": refused, "gamma/0": refused, "tgamma/0": refused, "lgamma/0": refused, "erf/0": refused, "erfc/0": refused,
	"j0/0": refused, "j1/0": refused, "y0/0": refused, "y1/0": refused, "atan2/2": refused, "copysign/2": refused,
	"drem/2": refused, "fdim/2": refused, "hypot/2": refused, "jn/2": refused, "nextafter/2": refused, "nexttoward/2": refused,
	"remainder/2": refused, "ldexp/2": refused, "scalb/2": refused, "scalbln/2": refused, "yn/2": refused, "pow/2": refused,
	"fma/3": refused, "combinations/1": refused, "truncate_stream/1": refused, "fromstream/1": refused, "tostream/0": refused,
	"INDEX/1": refused, "INDEX/2": refused, "JOIN/2": refused, "JOIN/3": refused, "JOIN/4": refused,
}

// refusals says of a refused function why, and what to do instead. The others
// are functions of mathematics.
var refusals = map[string][2]string{
	"now":               {"reads the clock", "use .time, the time of the event"},
	"localtime":         {"depends on the machine's time zone", "use gmtime"},
	"strflocaltime":     {"depends on the machine's time zone", "use strftime"},
	"env":               {"reads the environment", "put the value into the program"},
	"input":             {"reads further inputs, and there is one: the event", "use ."},
	"inputs":            {"reads further inputs, and there is one: the event", "use ."},
	"debug":             {"writes to the engine's output", "engine explain shows what the program gave"},
	"stderr":            {"writes to the engine's output", "engine explain shows what the program gave"},
	"input_filename":    {"reads further inputs, and there is one: the event", ""},
	"input_line_number": {"reads further inputs, and there is one: the event", ""},
	"halt":              {"ends the program from within", "use empty for no value, or error"},
	"halt_error":        {"ends the program from within", "use error"},
	"modulemeta":        {"reads files", ""},
	"builtins":          {"depends on the version of jq", ""},
	"get_search_list":   {"reads files", ""},
	"format":            {"takes a name that is not known before", "write the format itself, such as @base64"},
	"combinations":      {"makes more than can be told before", "use combinations without an argument"},
	"truncate_stream":   {"is not supported", "work on the values themselves"},
	"fromstream":        {"is not supported", "work on the values themselves"},
	"tostream":          {"is not supported", "work on the values themselves"},
	"INDEX":             {"is not supported", "use map({key: …, value: .}) | from_entries"},
	"JOIN":              {"is not supported", "join events with correlate, not within one"},
}
