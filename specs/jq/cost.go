package jq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/itchyny/gojq"

	"github.com/sensor-engine/engine/specs/expression"
)

const (
	// maxDepth is how deep a value may be nested that gojq looks through.
	maxDepth = 10_000
	// maxResult is how deep the result may be nested.
	maxResult = 1000
	// maxPath is the longest path that is set.
	maxPath = 1000
	// maxBits is the largest whole number that is computed with.
	maxBits = 4096
)

// meter is the budget of one run. gojq asks the context it runs under before
// each instruction whether it is done, which is how they are counted.
type meter struct {
	context.Context
	left int
	// instructions are those since the last step.
	instructions int
}

// perStep is how many instructions are a step.
const perStep = 4

func newMeter(budget int) *meter { return &meter{Context: context.Background(), left: budget} }

// closed is what a context is done with.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Done counts an instruction.
func (m *meter) Done() <-chan struct{} {
	if m.instructions++; m.instructions == perStep {
		m.instructions = 0
		m.left--
	}
	if m.left < 0 {
		return closed
	}
	return nil
}

// Err is what the run ends with.
func (m *meter) Err() error {
	if m.spent() {
		return expression.ErrBudget
	}
	return nil
}

func (m *meter) spent() bool { return m.left < 0 }

// charge takes n steps, or all that are left.
func (m *meter) charge(n int) error {
	if n < 0 || n > m.left {
		m.left = -1
		return expression.ErrBudget
	}
	m.left -= n
	return nil
}

// bytes is the cost of n bytes of text.
func bytes(n int) int { return n / 16 }

// size is what a value costs to look at: its elements and its text. It stops
// counting at what is left, so that a value that holds itself many times over
// costs no more to measure. What is nested too deep costs everything.
func (m *meter) size(v any) int {
	left := m.left + 1
	measure(v, &left, 0)
	return m.left + 1 - left
}

func measure(v any, left *int, depth int) {
	*left--
	if depth++; depth > maxDepth || *left < 0 {
		*left = min(*left, 0)
		if depth > maxDepth {
			*left = math.MinInt / 2
		}
		return
	}
	switch v := v.(type) {
	case string:
		*left -= bytes(len(v))
	case json.Number:
		*left -= bytes(len(v))
	case *big.Int:
		*left -= v.BitLen() / 128
	case []any:
		for _, e := range v {
			if measure(e, left, depth); *left < 0 {
				return
			}
		}
	case map[string]any:
		for k, e := range v {
			*left -= bytes(len(k))
			if measure(e, left, depth); *left < 0 {
				return
			}
		}
	}
}

// length is the number of elements of a list or object.
func length(v any) int {
	switch v := v.(type) {
	case []any:
		return len(v)
	case map[string]any:
		return len(v)
	}
	return 0
}

// textCost is what a text costs whose characters are taken apart.
func textCost(v any) int {
	if s, ok := v.(string); ok {
		return len(s) / 4
	}
	return 0
}

// product is a times b, or the most there is.
func product(a, b int) int {
	hi, lo := bits.Mul64(uint64(max(a, 0)), uint64(max(b, 0)))
	if hi > 0 || lo > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(lo)
}

// functions are our own functions, for gojq.
func (p *Program) functions() []gojq.CompilerOption {
	charged := func(cost func(m *meter, in any, args []any) int) func(any, []any) any {
		return func(in any, args []any) any {
			if err := p.meter.charge(cost(p.meter, in, args)); err != nil {
				return err
			}
			return in
		}
	}
	out := []gojq.CompilerOption{
		gojq.WithFunction(fnIter, 0, 0, charged(func(_ *meter, in any, _ []any) int { return length(in) })),
		gojq.WithFunction(fnIndex, 0, 1, charged(indexCost)),
		gojq.WithFunction(fnAssign, 0, 1, charged(assignCost)),
		gojq.WithFunction(fnTest, 1, 1, p.test),
		gojq.WithFunction(fnMatches, 1, 1, p.matches),
		gojq.WithFunction(fnParts, 1, 1, p.parts),
		gojq.WithFunction(fnSplits, 1, 1, p.splits),
	}
	for name, cost := range costs {
		out = append(out, gojq.WithFunction(fnCost+name, 0, 3, charged(cost)))
	}
	return out
}

// indexCost is what looking something up costs.
func indexCost(m *meter, in any, args []any) int {
	if s, ok := in.(string); ok {
		return len(s) / 4
	}
	if len(args) == 1 {
		if list, ok := args[0].([]any); ok { // where it is within the other
			return product(1+length(in), m.size(list))
		}
	}
	return 0
}

// assignCost is what changing a part costs: what it is a part of is copied.
func assignCost(m *meter, in any, args []any) int {
	n := length(in)
	if len(args) == 1 {
		if at, ok := gojq.ToInt(args[0]); ok {
			n = max(n, at)
		}
	}
	return n + indexCost(m, in, args)
}

// costs are what gojq's functions and operators cost, before they are called.
var costs = map[string]func(m *meter, in any, args []any) int{
	"@": inputSize, // formats
	"+": func(_ *meter, _ any, args []any) int {
		return number(args) + bytes(textLength(args[0])+textLength(args[1])) + length(args[0]) + length(args[1])
	},
	"-": func(m *meter, _ any, args []any) int {
		if length(args[0]) == 0 || length(args[1]) == 0 {
			return number(args)
		}
		return m.size(args[0]) + product(length(args[0]), m.size(args[1]))
	},
	"*": func(m *meter, _ any, args []any) int {
		for i, v := range args {
			s, ok := v.(string)
			if !ok {
				continue
			}
			times, ok := gojq.ToFloat64(args[1-i])
			if !ok {
				return 0
			}
			return bytes(product(len(s), int(min(max(times, 0), math.MaxInt32)))) + 1
		}
		if length(args[0]) == 0 && length(args[1]) == 0 {
			return number(args)
		}
		return m.size(args[0]) + m.size(args[1])
	},
	"/": func(_ *meter, _ any, args []any) int {
		if s, ok := args[0].(string); ok {
			return splitCost(s, args[1])
		}
		return number(args)
	},
	"%":  func(_ *meter, _ any, args []any) int { return number(args) },
	"==": compareCost, "!=": compareCost, "<": compareCost, ">": compareCost, "<=": compareCost, ">=": compareCost,

	"length":         func(_ *meter, in any, _ []any) int { return textCost(in) },
	"utf8bytelength": nothing, "has": nothing,
	"keys":    func(_ *meter, in any, _ []any) int { return 2 * length(in) },
	"add":     inputSize,
	"reverse": func(_ *meter, in any, _ []any) int { return length(in) },
	"tonumber": func(_ *meter, in any, _ []any) int {
		if s, ok := in.(string); ok && len(s) > maxDigits {
			return math.MaxInt32
		}
		return 0
	},
	"tostring": func(m *meter, in any, _ []any) int {
		if _, ok := in.(string); ok {
			return 0
		}
		return m.size(in)
	},
	"tojson": inputSize, "fromjson": fromJSONCost,
	"contains": func(m *meter, in any, args []any) int { return containsCost(m, in, args[0]) },
	"inside":   func(m *meter, in any, args []any) int { return containsCost(m, args[0], in) },
	"indices":  searchCost, "index": searchCost, "rindex": searchCost,
	"startswith": argumentText, "endswith": argumentText, "ltrimstr": argumentText, "rtrimstr": argumentText, "trimstr": argumentText,
	"ltrim": inputText, "rtrim": inputText, "trim": inputText, "ascii_downcase": inputText, "ascii_upcase": inputText,
	"explode": func(_ *meter, in any, _ []any) int { return textLength(in) },
	"implode": func(_ *meter, in any, _ []any) int { return length(in) },
	"split":   func(_ *meter, in any, args []any) int { return splitCost(in, args[0]) },
	"join": func(m *meter, in any, args []any) int {
		return m.size(in) + bytes(product(length(in), textLength(args[0])))
	},
	"flatten": inputSize, "min": inputSize, "max": inputSize,
	"sort": sortCost, "unique": sortCost,
	"_min_by": byCost, "_max_by": byCost, "_sort_by": byCost, "_group_by": byCost, "_unique_by": byCost,
	"_captures": func(_ *meter, in any, _ []any) int { return length(in) },
	"setpath":   setpathCost,
	"delpaths":  func(m *meter, in any, args []any) int { return m.size(in) + sorting(m, args[0]) },
	"getpath":   getpathCost,
	"transpose": func(_ *meter, in any, _ []any) int {
		rows, longest := 0, 0
		if list, ok := in.([]any); ok {
			rows = len(list)
			for _, row := range list {
				longest = max(longest, length(row))
			}
		}
		return rows + product(rows, longest)
	},
	"bsearch":  func(m *meter, in any, args []any) int { return product(m.size(args[0]), bits.Len(uint(length(in)))) },
	"strftime": func(*meter, any, []any) int { return maxLayout },
	"strptime": inputText, "fromdate": inputText, "fromdateiso8601": inputText,
}

func nothing(*meter, any, []any) int { return 0 }

func inputSize(m *meter, in any, _ []any) int { return m.size(in) }

func inputText(_ *meter, in any, _ []any) int { return bytes(textLength(in)) }

func argumentText(_ *meter, _ any, args []any) int { return bytes(textLength(args[0])) }

func textLength(v any) int {
	s, _ := v.(string)
	return len(s)
}

// number refuses to compute with numbers that are too large.
func number(args []any) int {
	for _, v := range args {
		switch v := v.(type) {
		case *big.Int:
			if v.BitLen() > maxBits {
				return math.MaxInt32
			}
		case json.Number:
			if len(v) > maxDigits {
				return math.MaxInt32
			}
		}
	}
	return 1
}

func compareCost(m *meter, _ any, args []any) int {
	switch l := args[0].(type) {
	case string:
		if r, ok := args[1].(string); ok {
			return bytes(min(len(l), len(r)))
		}
	case []any, map[string]any:
		if length(args[0]) > 0 && length(args[1]) > 0 {
			return m.size(l) + m.size(args[1])
		}
	}
	return number(args)
}

func containsCost(m *meter, l, r any) int {
	switch l.(type) {
	case []any, map[string]any:
		return product(m.size(l), m.size(r))
	}
	return bytes(textLength(l) + textLength(r))
}

func searchCost(m *meter, in any, args []any) int {
	if s, ok := in.(string); ok {
		return len(s) + product(len(s), textLength(args[0])/16)
	}
	return length(in) + product(length(in), m.size(args[0]))
}

func splitCost(v, by any) int {
	s, ok := v.(string)
	sep, ok2 := by.(string)
	if !ok || !ok2 {
		return 0
	}
	return 1 + bytes(len(s)) + strings.Count(s, sep)
}

// sorting is what it costs to sort a list by its own values.
func sorting(m *meter, v any) int { return product(m.size(v), 1+bits.Len(uint(length(v)))/4) }

func sortCost(m *meter, in any, _ []any) int { return sorting(m, in) }

func byCost(m *meter, in any, args []any) int { return length(in) + sorting(m, args[0]) }

func setpathCost(m *meter, in any, args []any) int {
	path, ok := args[0].([]any)
	if !ok {
		return 0
	}
	if len(path) > maxPath {
		return math.MaxInt32
	}
	n := m.size(path)
	for _, key := range path {
		n += length(in)
		switch key := key.(type) {
		case string:
			o, _ := in.(map[string]any)
			in = o[key]
		default:
			at, _ := gojq.ToInt(key)
			n += max(at, 0)
			list, _ := in.([]any)
			if in = nil; at >= 0 && at < len(list) {
				in = list[at]
			} else if at < 0 && -at <= len(list) {
				in = list[len(list)+at]
			}
		case map[string]any: // a part of a list
		}
		if n < 0 || n > math.MaxInt32 {
			return math.MaxInt32
		}
	}
	return n
}

func getpathCost(m *meter, in any, args []any) int {
	path, ok := args[0].([]any)
	if !ok {
		return 0
	}
	n := m.size(path)
	for _, key := range path {
		n += indexCost(m, in, []any{key})
		switch key := key.(type) {
		case string:
			o, _ := in.(map[string]any)
			in = o[key]
		default:
			at, ok := gojq.ToInt(key)
			list, _ := in.([]any)
			if !ok {
				continue
			}
			if at < 0 {
				at += len(list)
			}
			if in = nil; at >= 0 && at < len(list) {
				in = list[at]
			}
		}
		if n > math.MaxInt32 {
			return math.MaxInt32
		}
	}
	return n
}

// fromJSONCost is what a text costs that is read as JSON. A long number takes
// more than its length.
func fromJSONCost(_ *meter, in any, _ []any) int {
	s, ok := in.(string)
	if !ok {
		return 0
	}
	run := 0
	for i := range len(s) {
		if run++; s[i] < '0' || s[i] > '9' {
			run = 0
		}
		if run > maxDigits {
			return math.MaxInt32
		}
	}
	return len(s) / 2
}

// find finds the matches of a regular expression in the input.
func (p *Program) find(in any, args []any) (s string, i int, at [][]int, err error) {
	s, ok := in.(string)
	if !ok {
		return "", 0, nil, fmt.Errorf("a regular expression cannot be applied to: %s", gojq.Preview(in))
	}
	i, _ = gojq.ToInt(args[0])
	if err := p.meter.charge(1 + product(len(s)/4, p.factors[i])); err != nil {
		return "", 0, nil, err
	}
	n, each := 1, 8*(1+p.regexps[i].NumSubexp())
	if p.global[i] {
		n = p.meter.left/each + 1 // no more than can be paid for
	}
	at = p.regexps[i].FindAllStringSubmatchIndex(s, n)
	return s, i, at, p.meter.charge(product(len(at), each))
}

func (p *Program) test(in any, args []any) any {
	s, ok := in.(string)
	if !ok {
		return fmt.Errorf("a regular expression cannot be applied to: %s", gojq.Preview(in))
	}
	i, _ := gojq.ToInt(args[0])
	if err := p.meter.charge(1 + product(len(s)/4, p.factors[i])); err != nil {
		return err
	}
	return p.regexps[i].MatchString(s)
}

// matches are the matches as jq describes them; offsets are in characters.
func (p *Program) matches(in any, args []any) any {
	s, i, found, err := p.find(in, args)
	if err != nil {
		return err
	}
	return p.describe(s, i, found)
}

func (p *Program) describe(s string, i int, found [][]int) []any {
	chars := counter{s: s}
	out := make([]any, len(found))
	names := p.regexps[i].SubexpNames()
	for n, at := range found {
		captures := make([]any, 0, len(names)-1)
		before := chars.upTo(at[0])
		for g := 1; g < len(names); g++ {
			var name any
			if names[g] != "" {
				name = names[g]
			}
			from, to := at[2*g], at[2*g+1]
			if from < 0 {
				captures = append(captures, map[string]any{"name": name, "offset": -1, "length": 0, "string": nil})
				continue
			}
			captures = append(captures, map[string]any{
				"name": name, "offset": before + utf8.RuneCountInString(s[at[0]:from]), "length": utf8.RuneCountInString(s[from:to]), "string": s[from:to],
			})
		}
		out[n] = map[string]any{
			"offset": before, "length": utf8.RuneCountInString(s[at[0]:at[1]]), "string": s[at[0]:at[1]], "captures": captures,
		}
	}
	return out
}

// counter counts the characters up to ascending offsets.
type counter struct {
	s       string
	at, had int
}

func (c *counter) upTo(offset int) int {
	c.had += utf8.RuneCountInString(c.s[c.at:offset])
	c.at = offset
	return c.had
}

// parts are the matches with the text before each, and the text after the last.
func (p *Program) parts(in any, args []any) any {
	s, i, found, err := p.find(in, args)
	if err != nil {
		return err
	}
	described := p.describe(s, i, found)
	out := make([]any, 0, len(found)+1)
	end := 0
	for n, at := range found {
		out = append(out, map[string]any{"before": s[end:at[0]], "match": described[n]})
		end = at[1]
	}
	return append(out, map[string]any{"before": s[end:], "match": nil})
}

// splits are the texts beside the matches.
func (p *Program) splits(in any, args []any) any {
	s, _, found, err := p.find(in, args)
	if err != nil {
		return err
	}
	out := make([]any, 0, len(found)+1)
	end := 0
	for _, at := range found {
		out = append(out, s[end:at[0]])
		end = at[1]
	}
	return append(out, s[end:])
}

// input gives a value in the types of gojq, as a copy: it writes into what it
// made itself, and must not meet what others have.
func (m *meter) input(v any, depth int) (any, error) {
	if depth++; depth > maxDepth {
		return nil, expression.ErrBudget
	}
	if err := m.weigh(v); err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil, bool, string, int:
		return v, nil
	case float64:
		return v, nil
	case int64:
		if int64(int(v)) == v {
			return int(v), nil
		}
		return big.NewInt(v), nil
	case time.Time:
		return v.Format(time.RFC3339Nano), nil
	case []any, map[string]any:
		return elements(v, depth, m.input)
	}
	return nil, fmt.Errorf("a value of type %T cannot be given to a jq program", v)
}

// output gives the result in the types of JSON, as a copy.
func (m *meter) output(v any, depth int) (any, error) {
	if depth++; depth > maxResult {
		return nil, fmt.Errorf("the jq program gave a value that is nested deeper than %d", maxResult)
	}
	if err := m.weigh(v); err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil, bool, string:
		return v, nil
	case int:
		return int64(v), nil
	case *big.Int:
		if v.IsInt64() {
			return v.Int64(), nil
		}
		f, _ := new(big.Float).SetInt(v).Float64()
		return finite(f), nil
	case json.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return n, nil
		}
		f, err := strconv.ParseFloat(string(v), 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return nil, err
		}
		return finite(f), nil
	case float64:
		return finite(v), nil
	case []any, map[string]any:
		return elements(v, depth, m.output)
	}
	return nil, fmt.Errorf("the jq program gave a value of type %T", v)
}

// weigh charges for a value without what is in it.
func (m *meter) weigh(v any) error {
	cost := 1
	if s, ok := v.(string); ok {
		cost += bytes(len(s))
	}
	return m.charge(cost)
}

// elements copies a list or an object, with each element made by of.
func elements(v any, depth int, of func(v any, depth int) (any, error)) (any, error) {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			c, err := of(e, depth)
			if err != nil {
				return nil, err
			}
			out[i] = c
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			c, err := of(e, depth)
			if err != nil {
				return nil, err
			}
			out[k] = c
		}
		return out, nil
	}
	return v, nil
}

// finite is f as jq writes it: JSON has neither NaN nor infinities.
func finite(f float64) any {
	if math.IsNaN(f) {
		return nil
	}
	return min(max(f, -math.MaxFloat64), math.MaxFloat64)
}
