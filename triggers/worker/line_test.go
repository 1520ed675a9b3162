package worker

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

func TestLine(t *testing.T) {
	line, err := Line(t.Context(), &triggers.Call{
		Key: "k", Attempt: 2, Secrets: map[string]string{"a": "b"}, Event: &bus.Event{ID: "1", Type: "t", Data: []byte("{\"n\":\n1}")},
	})
	var got struct {
		ID      int
		Context struct {
			Key     string
			Secrets map[string]string
		}
		Payload map[string]int
	}
	if err != nil || json.Unmarshal(line, &got) != nil || strings.Count(string(line), "\n") != 1 {
		t.Fatalf("%s, %v", line, err)
	}
	if got.ID != 1 || got.Context.Key != "k" || got.Context.Secrets["a"] != "b" || got.Payload["n"] != 1 {
		t.Errorf("%s", line)
	}
	if _, err := Line(t.Context(), &triggers.Call{Event: &bus.Event{DataContentType: "application/json", Data: []byte("{")}}); triggers.ClassOf(err) != triggers.InputError {
		t.Error(err)
	}
}

func TestAnswer(t *testing.T) {
	for written, want := range map[string]string{
		`{"id":1,"payload":{"a":1}}`: `{"a":1}`,
		"\n{\"id\":1}\n\n":           `null`,
		`{"id":1,"payload":"` + strings.Repeat("x", 100_000) + `"}`: `"` + strings.Repeat("x", 100_000) + `"`,
		"":                       "FunctionError: not an answer: there is none",
		`{"id":2}`:               "FunctionError: not an answer: its id is not that of the call",
		"hello\n{\"id\":1}":      "FunctionError: not an answer: more than one line came",
		"hello":                  "FunctionError: not an answer: a line is no JSON object",
		"{\"id\":1}\n{\"id\":1}": "FunctionError: not an answer: more than one line came",
		`{"id":1,"error":{"type":"InputError","message":"no name"}}`: "InputError: no name",
		`{"id":1,"error":{"type":"X","message":"no name"}}`:          "FunctionError: not an answer: its error is of type",
		`{"id":1,"events":[{"type":"t","time":"x"}]}`:                "FunctionError: emitted event 1",
	} {
		res, err := Answer([]byte(written))
		got := string(res.Output)
		if err != nil {
			if got = err.Error(); res.Status != "failed" || res.Output != nil {
				t.Errorf("%+v", res)
			}
		}
		if got != want && (err == nil || !strings.HasPrefix(got, want)) {
			t.Errorf("%.50s: %.200s, want %.200s", written, got, want)
		}
	}
	res, err := Answer([]byte(`{"id":1,"events":[{"type":"t","data":{"a":1}}]}`))
	if err != nil || len(res.Events) != 1 || res.Events[0].Type != "t" || string(res.Events[0].Data) != `{"a":1}` {
		t.Errorf("%+v, %v", res, err)
	}
	if _, ok := errors.AsType[*triggers.Error](func() error { _, err := Answer(nil); return err }()); !ok {
		t.Error("no class")
	}
}
