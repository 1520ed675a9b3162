package program

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// values are texts as they are and one secret.
type values struct{ triggers.Values }

func (values) TextOrSecret(t specs.TextOrSecret) (string, error) {
	if t.Secret != nil {
		return t.Prefix + "hidden", nil
	}
	if t.Text.Value == "" {
		return "", errors.New("missing")
	}
	return t.Text.Value, nil
}

func TestEnviron(t *testing.T) {
	c := &triggers.Call{
		Key: "k", Attempt: 2, Function: "f", Values: values{}, Secrets: map[string]string{"api-key": "s"},
		Event: &bus.Event{ID: "1", Type: "t", Time: time.Unix(1, 0).UTC(), Extensions: map[string]string{"path": "/evil"}},
	}
	own := map[string]specs.TextOrSecret{"B": {Secret: &specs.SecretRef{Name: "a", Key: "b"}, Prefix: "x "}, "A": {Text: specs.Text{Value: "1"}}}
	got, err := Environ(c, own, nil)
	want := []string{
		"ENGINE_KEY=k", "ENGINE_ATTEMPT=2", "ENGINE_FUNCTION=f", "CE_SPECVERSION=1.0", "CE_ID=1", "CE_TYPE=t",
		"CE_TIME=1970-01-01T00:00:01Z", "CE_EXT_PATH=/evil", "API_KEY=s", "A=1", "B=x hidden",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	for why, refused := range map[string]func() ([]string, error){
		"which is bad": func() ([]string, error) {
			return Environ(c, nil, func(name string) string { return map[string]string{"API_KEY": "which is bad"}[name] })
		},
		"missing": func() ([]string, error) { return Environ(c, map[string]specs.TextOrSecret{"A": {}}, nil) },
		"NUL": func() ([]string, error) {
			return Environ(c, map[string]specs.TextOrSecret{"A": {Text: specs.Text{Value: "\x00"}}}, nil)
		},
	} {
		if _, err := refused(); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %s", err, why)
		}
	}
}

func TestStdin(t *testing.T) {
	c := &triggers.Call{Event: &bus.Event{ID: "1", Source: "s", Type: "t", Data: []byte("1")}, Input: "x", HasInput: true}
	for what, want := range map[string]string{
		"": `"x"`, StdinInput: `"x"`, StdinData: "1", StdinNone: "",
		StdinEvent: `{"specversion":"1.0","id":"1","source":"s","type":"t","data":1}`,
	} {
		if got, err := Stdin(what, c); string(got) != want || err != nil {
			t.Errorf("%q: %s, %v", what, got, err)
		}
	}
	for _, what := range []string{"", StdinInput, StdinData, StdinEvent} {
		if got, err := Stdin(what, &triggers.Call{}); got != nil || err != nil {
			t.Errorf("%q without anything: %s, %v", what, got, err)
		}
	}
	if _, err := Stdin("", &triggers.Call{Input: make(chan int), HasInput: true}); err == nil {
		t.Error("a channel is no JSON")
	}
}

func TestOutput(t *testing.T) {
	for log, want := range map[string]string{
		"": "", "\n\n": "", "a\nb\x1b\n": ": b", "x " + strings.Repeat("y", 300): ": x…",
	} {
		if got := Excerpt([]byte(log)); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
	w := &Capped{Limit: 5}
	for _, s := range []string{"abc", "def", "g"} {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Error(n, err)
		}
	}
	if string(w.Kept) != "abcde" || !w.Cut {
		t.Errorf("%+v", w)
	}
}
