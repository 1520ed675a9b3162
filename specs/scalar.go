package specs

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// durationUnits are the units of a [Duration], longest spelling first.
var durationUnits = []struct {
	name string
	unit time.Duration
}{
	{"ms", time.Millisecond},
	{"us", time.Microsecond},
	{"µs", time.Microsecond},
	{"ns", time.Nanosecond},
	{"s", time.Second},
	{"m", time.Minute},
	{"h", time.Hour},
	{"d", 24 * time.Hour},
}

const durationPattern = `^(0|(\d+(\.\d+)?(ns|us|µs|ms|s|m|h|d))+)$`

// ParseDuration reads a length of time such as 500ms, 10s, 1h30m or 7d. The
// error says what to write instead.
func ParseDuration(text string) (Duration, error) {
	bad := func(hint string) (Duration, error) {
		return 0, &formatError{fmt.Sprintf("`%s` is not a duration", clip(text)), hint}
	}
	if text == "0" {
		return 0, nil
	}
	total := 0.0
	var exact time.Duration
	for rest := text; rest != "" || text == ""; {
		i := 0
		for i < len(rest) && (rest[i] >= '0' && rest[i] <= '9' || rest[i] == '.') {
			i++
		}
		number := rest[:i]
		v, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return bad("write it as 500ms, 10s, 5m, 2h or 7d")
		}
		rest = rest[i:]
		if rest == "" {
			return bad("it has no unit; write " + text + "s for seconds")
		}
		found := false
		for _, u := range durationUnits {
			if strings.HasPrefix(rest, u.name) {
				rest, found = rest[len(u.name):], true
				total += v * float64(u.unit)
				if n, err := strconv.ParseInt(number, 10, 64); err == nil {
					exact += time.Duration(n) * u.unit
				} else {
					exact += time.Duration(v * float64(u.unit))
				}
				break
			}
		}
		if !found {
			return bad("the units are ms, s, m, h and d")
		}
	}
	if total > math.MaxInt64 {
		return bad("the longest duration is 106751d")
	}
	return Duration(exact), nil
}

// short is like String without the units that are zero: 5m, not 5m0s.
func (d Duration) short() string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// sizeUnits are the units of a [Size].
var sizeUnits = []struct {
	name string
	unit int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

const sizePattern = `^\d+(\.\d+)?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?$`

// ParseSize reads a number of bytes such as 512, 64KiB, 1MiB or 10GB. The
// error says what to write instead.
func ParseSize(text string) (Size, error) {
	number, unit := text, int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(text, u.name); ok {
			number, unit = n, u.unit
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && n >= 0 && n <= math.MaxInt64/unit {
		return Size(n * unit), nil
	}
	if v, err := strconv.ParseFloat(number, 64); err == nil && simpleNumber.MatchString(number) {
		if b := v * float64(unit); b < math.MaxInt64 && b == math.Trunc(b) {
			return Size(b), nil
		}
	}
	return 0, &formatError{fmt.Sprintf("`%s` is not a size", clip(text)), "write it as 512, 64KiB, 1MiB or 10GB"}
}

var simpleNumber = regexp.MustCompile(`^\d+(\.\d+)?$`)

// String writes the size with the largest unit that keeps it whole.
func (s Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; s != 0 && int64(s)%u.unit == 0 {
			return strconv.FormatInt(int64(s)/u.unit, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// formatError is a text that does not have the form it should have.
type formatError struct{ what, hint string }

func (e *formatError) Error() string { return e.what + ": " + e.hint }

func clip(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

var (
	octalLike    = regexp.MustCompile(`^[-+]?0[0-9][0-9_]*$`)
	digits       = regexp.MustCompile(`^[-+]?[0-9]+$`)
	trailingZero = regexp.MustCompile(`^[-+]?[0-9]+\.[0-9]*[0-9]0$`)
)

// problem is what is wrong with a scalar.
type problem struct {
	severity  Severity
	code      Code
	what, tip string
}

func badNumber(code Code, what, tip string) *problem { return &problem{Error, code, what, tip} }

// number reads a scalar that YAML takes for a number: int64 or float64.
func (n *node) number() (any, *problem) {
	text := n.value
	quoted := "write " + quote(text) + " if it is text"
	if octalLike.MatchString(text) {
		return nil, badNumber(CodeAmbiguous, fmt.Sprintf("`%s` has a leading zero and would be read as octal by some", text),
			quoted+", or "+decimal(text)+" if it is a number")
	}
	plain := strings.ReplaceAll(text, "_", "")
	if i, err := strconv.ParseInt(plain, 0, 64); err == nil {
		if n.tag == "!!float" {
			return float64(i), nil
		}
		if plain != text {
			return i, badNumber(CodeAmbiguous, fmt.Sprintf("`%s` has an underscore and would be read as text by some", text), quoted)
		}
		return i, nil
	}
	if n.tag == "!!int" || digits.MatchString(plain) {
		return nil, badNumber(CodeInvalidNumber, fmt.Sprintf("`%s` does not fit into 64 bits", clip(text)), quoted)
	}
	f, err := strconv.ParseFloat(strings.ToLower(plain), 64)
	if strings.Contains(strings.ToLower(text), ".inf") || strings.Contains(strings.ToLower(text), ".nan") || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, badNumber(CodeInvalidNumber, fmt.Sprintf("`%s` is not a finite number", clip(text)), quoted)
	}
	if err != nil {
		return nil, badNumber(CodeInvalidNumber, fmt.Sprintf("`%s` is not a number", clip(text)), quoted)
	}
	return f, nil
}

// decimal strips the zeros in front.
func decimal(text string) string {
	sign := strings.TrimRight(text[:1], "0123456789")
	if d := strings.TrimLeft(text, "+-0"); d != "" {
		return strings.TrimPrefix(sign, "+") + d
	}
	return "0"
}

// free reads a scalar of a free value: nil, bool, int64, float64 or string.
// The problem may be a warning, then the value holds.
func (n *node) free() (any, *problem) {
	switch n.tag {
	case "!!null":
		return nil, nil
	case "!!bool":
		switch strings.ToLower(n.value) {
		case "true":
			return true, nil
		case "false":
			return false, nil
		}
		return nil, badNumber(CodeWrongType, fmt.Sprintf("`%s` is not a boolean", clip(n.value)), "write true or false")
	case "!!int", "!!float":
		v, p := n.number()
		if p == nil && n.style == plainStyle && trailingZero.MatchString(n.value) {
			return v, &problem{
				Warning, CodeAmbiguous, fmt.Sprintf("`%s` is the number %v", n.value, v),
				"write " + quote(n.value) + " to keep the text",
			}
		}
		return v, p
	}
	if n.style == plainStyle {
		switch strings.ToLower(n.value) {
		case "yes", "no", "on", "off":
			return n.value, &problem{
				Warning, CodeAmbiguous, fmt.Sprintf("`%s` is text here, not a boolean", n.value),
				"write true or false, or " + quote(n.value) + " if text is meant",
			}
		}
	}
	return n.value, nil
}

// unterminated returns the offset of a "${" that has no "}", or -1.
func unterminated(s string) int {
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 >= len(s) {
			continue
		}
		if strings.HasPrefix(s[i:], "$${") {
			i += 2
			continue
		}
		if s[i+1] != '{' {
			continue
		}
		end := closing(s[i+2:])
		if end < 0 {
			return i
		}
		i += 2 + end
	}
	return -1
}

// closing returns the offset of the brace that ends an expression, or -1. It
// knows expr's strings and nested braces.
func closing(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '{':
			depth++
		case '}':
			if depth == 0 {
				return i
			}
			depth--
		case '"', '\'', '`':
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' && c != '`' {
					i++
				}
			}
		}
	}
	return -1
}

// nearest returns the name that text is most probably a misspelling of, or "".
func nearest(text string, names []string) string {
	const longest = 64
	if len(text) > longest {
		return ""
	}
	best, at := "", max(1, len(text)/3)+1
	for _, name := range names {
		if strings.EqualFold(name, text) {
			return name
		}
		if len(name) > longest || name == "" {
			continue
		}
		if d := distance(strings.ToLower(text), strings.ToLower(name)); d < at && d < max(len(name), 2) {
			best, at = name, d
		}
	}
	if best != "" {
		return best
	}
	// Words that begin alike, such as deps and dependencies.
	const alike = 3
	for _, name := range names {
		if n := commonPrefix(strings.ToLower(text), strings.ToLower(name)); n >= alike && 2*n >= min(len(text), len(name)) {
			if best != "" {
				return ""
			}
			best = name
		}
	}
	return best
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// distance is the number of edits between two texts (Damerau-Levenshtein,
// optimal string alignment, over bytes).
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// didYouMean is the hint for a wrong name, or the list of those that exist
// when none is near.
func didYouMean(text string, names []string) string {
	if n := nearest(text, names); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	const most = 12
	if len(names) == 0 {
		return ""
	}
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return "one of: " + strings.Join(names, ", ")
}

// MatchGlob reports whether s matches the pattern, in which * stands for any
// text, also with dots and none at all, and ? for exactly one character.
// There is no escape. A pattern without them matches itself.
func MatchGlob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == '?':
			p++
			i += runeLen(s[i:])
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark += runeLen(s[mark:])
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

func runeLen(s string) int {
	for i := range s {
		if i > 0 {
			return i
		}
	}
	return len(s)
}

// IsGlob reports whether the pattern has a * or ?.
func IsGlob(pattern string) bool { return strings.ContainsAny(pattern, "*?") }
