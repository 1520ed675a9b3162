package spectest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// outcomes are the outcomes of verdicts by their names in tests.
var outcomes = map[string]sensors.Outcome{
	"missing": sensors.Missing, "failed": sensors.Failed, "superseded": sensors.Superseded,
	"expired": sensors.Expired, "answered": sensors.Answered, "suppressed": sensors.Suppressed, "debounced": sensors.Debounced, "skipped": sensors.Skipped,
	"evicted": sensors.Evicted, "waiting": sensors.Waiting,
}

// missing finds the verdicts that were expected and not given. Each verdict
// answers one expectation.
func (r *recorder) missing(t *specs.Test) (out []Failure) {
	answers := func(i, j int) bool {
		e, v := &t.Verdicts[i], &r.verdicts[j]
		return v.sensor == e.Sensor && v.Outcome == outcomes[e.Outcome] && (e.Dependency == "" || e.Dependency == v.Dependency) &&
			(e.Trigger == "" || e.Trigger == v.Trigger) && (e.At == nil || e.At.D() == v.at) && strings.Contains(v.Detail, e.Detail)
	}
	found := assign(len(t.Verdicts), len(r.verdicts), answers)
	for i, j := range found {
		if j >= 0 {
			continue
		}
		e := &t.Verdicts[i]
		f := Failure{Pos: e.Pos, Message: fmt.Sprintf("sensor %s never says: %s", e.Sensor, e.Outcome)}
		for k := range r.verdicts {
			v := &r.verdicts[k]
			name := outcomeName(v.Outcome)
			if v.sensor != e.Sensor || name == "" || slices.Contains(found, k) {
				continue
			}
			said := []string{"+ outcome: " + name, "at: " + clock(v.at)}
			for _, p := range [][2]string{{"dependency", v.Dependency}, {"trigger", v.Trigger}, {"detail", v.Detail}} {
				if p[1] != "" {
					said = append(said, p[0]+": "+p[1])
				}
			}
			f.Diff = append(f.Diff, strings.Join(said, ", "))
		}
		out = append(out, f)
	}
	return out
}

func outcomeName(o sensors.Outcome) string {
	for name, is := range outcomes {
		if is == o {
			return name
		}
	}
	return ""
}

// compare finds the differences between the firings of a test and those
// expected.
func compare(t *specs.Test, firings []Firing) (out []Failure) {
	found := assign(len(t.Expect), len(firings), func(i, j int) bool { return matches(&t.Expect[i], &firings[j]) })
	free := make([]bool, len(firings))
	for j := range firings {
		free[j] = !slices.Contains(found, j)
	}
	for i, j := range found {
		if j >= 0 {
			continue
		}
		// What is told beside is the firing that was probably meant.
		e := &t.Expect[i]
		near := -1
		for j := range firings {
			f := &firings[j]
			if free[j] && f.Sensor == e.Sensor && (e.Trigger == "" || e.Trigger == f.Trigger) && (near < 0 || likeness(e, f) > likeness(e, &firings[near])) {
				near = j
			}
		}
		want := expected(e)
		if near < 0 {
			out = append(out, Failure{Pos: e.Pos, Message: fmt.Sprintf("sensor %s does not fire as expected", e.Sensor), Diff: mark("- ", want)})
			continue
		}
		free[near] = false
		out = append(out, Failure{Pos: e.Pos, Message: fmt.Sprintf("sensor %s fires, but otherwise", e.Sensor), Diff: diff(want, actual(&firings[near], e))})
	}
	if t.Strict != nil && !*t.Strict {
		return out
	}
	for j := range firings {
		if free[j] {
			out = append(out, Failure{
				Pos: t.Pos, Message: fmt.Sprintf("sensor %s fires, which is not expected", firings[j].Sensor),
				Diff: mark("+ ", actual(&firings[j], nil)),
			})
		}
	}
	return out
}

// assign gives each of n expectations one of m things that match it, so that
// as many as possible have one; -1 stands for none. Expectations take the
// first that is free.
func assign(n, m int, match func(i, j int) bool) []int {
	of, by := make([]int, n), make([]int, m)
	for i := range of {
		of[i] = -1
	}
	for j := range by {
		by[j] = -1
	}
	var try func(i int, tried []bool) bool
	try = func(i int, tried []bool) bool {
		for j := range m {
			if tried[j] || !match(i, j) {
				continue
			}
			tried[j] = true
			if by[j] < 0 || try(by[j], tried) {
				by[j], of[i] = i, j
				return true
			}
		}
		return false
	}
	for i := range n {
		try(i, make([]bool, m))
	}
	return of
}

// aspects are what an expectation may say of a firing, in the order of its
// keys: whether it does, what it wants, what there is, and whether that is it.
func aspects(e *specs.ExpectedFiring, f *Firing) []aspect {
	value := func(v specs.Value) any {
		out, err := jsonValue(v.Root)
		if err != nil {
			return v.Root
		}
		return out
	}
	at := ""
	if e.At != nil {
		at = clock(e.At.D())
	}
	text := func(key, want, got string) aspect {
		return aspect{key, want != "", want, got, want == got}
	}
	whole := func(key string, v specs.Value, got any) aspect {
		want := value(v)
		return aspect{key, v.Set, want, got, equal(want, got)}
	}
	part := func(key string, v specs.Value, got any) aspect {
		want := value(v)
		cut, ok := project(want, got)
		return aspect{key, v.Set, want, cut, ok}
	}
	return []aspect{
		text("sensor", e.Sensor, f.Sensor),
		text("trigger", e.Trigger, f.Trigger),
		text("at", at, clock(f.At)),
		whole("key", e.Key, f.Key),
		text("function", e.Function, f.Function),
		whole("input", e.Input, f.Input),
		part("contains", e.Contains, f.Input),
		part("config", e.Config, f.Config),
		{"error", e.Error != "" || f.Error != "", e.Error, f.Error, (e.Error == "") == (f.Error == "") && strings.Contains(f.Error, e.Error)},
	}
}

type aspect struct {
	key       string
	given     bool
	want, got any
	ok        bool
}

func matches(e *specs.ExpectedFiring, f *Firing) bool {
	return !slices.ContainsFunc(aspects(e, f), func(a aspect) bool { return a.given && !a.ok })
}

// likeness counts what of the expectation holds.
func likeness(e *specs.ExpectedFiring, f *Firing) (n int) {
	for _, a := range aspects(e, f) {
		if a.given && a.ok {
			n++
		}
	}
	return n
}

// equal compares JSON values; numbers by their value.
func equal(a, b any) bool {
	_, ok := project(a, b)
	if !ok {
		return false
	}
	_, ok = project(b, a)
	return ok
}

// project cuts from got what want has no keys for, and reports whether the
// rest is want. Lists have the same length.
func project(want, got any) (cut any, ok bool) {
	switch w := want.(type) {
	case map[string]any:
		g, is := got.(map[string]any)
		if !is {
			return got, false
		}
		out, all := map[string]any{}, true
		for k, v := range w {
			there, has := g[k]
			if !has {
				all = false
				continue
			}
			part, same := project(v, there)
			out[k], all = part, all && same
		}
		return out, all
	case []any:
		g, is := got.([]any)
		if !is || len(g) != len(w) {
			return got, false
		}
		out, all := make([]any, len(w)), true
		for i := range w {
			part, same := project(w[i], g[i])
			out[i], all = part, all && same
		}
		return out, all
	case int64:
		if g, is := got.(float64); is {
			return got, float64(w) == g
		}
	case float64:
		if g, is := got.(int64); is {
			return got, w == float64(g)
		}
	}
	return got, reflect.DeepEqual(want, got)
}

// expected are the lines of an expectation.
func expected(e *specs.ExpectedFiring) (out []string) {
	for _, a := range aspects(e, &Firing{}) {
		if a.given {
			out = append(out, entry(a.key, a.want)...)
		}
	}
	return out
}

// actual are the lines of a firing: of what the expectation speaks of, or all.
func actual(f *Firing, e *specs.ExpectedFiring) (out []string) {
	if e != nil {
		for _, a := range aspects(e, f) {
			if a.given && (a.key != "error" || f.Error != "") {
				out = append(out, entry(a.key, a.got)...)
			}
		}
		return out
	}
	for _, a := range aspects(&specs.ExpectedFiring{}, f) {
		if a.got != nil && a.got != "" && a.key != "contains" {
			out = append(out, entry(a.key, a.got)...)
		}
	}
	return out
}

// clock is a time of a test as people write it: 5m, not 5m0s.
func clock(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// entry are the lines of one key.
func entry(key string, v any) []string {
	if t, ok := v.(string); ok && key != "key" && key != "input" && key != "contains" && !strings.ContainsAny(t, "\n\r") {
		return []string{key + ": " + t}
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return []string{fmt.Sprintf("%s: %v", key, v)}
	}
	return strings.Split(key+": "+strings.TrimSuffix(b.String(), "\n"), "\n")
}

func mark(sign string, lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = sign + l
	}
	return out
}

// maxDiff bounds the work of a diff: beyond it all lines of both are shown.
const maxDiff = 2000

// diff compares lines by their longest common subsequence.
func diff(want, got []string) (out []string) {
	if len(want) > maxDiff || len(got) > maxDiff {
		return append(mark("- ", want), mark("+ ", got)...)
	}
	// common[i][j] is the length for want[i:] and got[j:].
	common := make([][]int, len(want)+1)
	for i := range common {
		common[i] = make([]int, len(got)+1)
	}
	for i, w := range slices.Backward(want) {
		for j, g := range slices.Backward(got) {
			if w == g {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(want) && j < len(got) {
		switch {
		case want[i] == got[j]:
			out = append(out, "  "+want[i])
			i, j = i+1, j+1
		case common[i+1][j] >= common[i][j+1]:
			out = append(out, "- "+want[i])
			i++
		default:
			out = append(out, "+ "+got[j])
			j++
		}
	}
	return append(append(out, mark("- ", want[i:])...), mark("+ ", got[j:])...)
}
