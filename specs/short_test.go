package specs_test

import (
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

type shortConfig struct {
	Catchup shortCatchup `yaml:"catchup" short:"mode" doc:"What is done later."`
}

type shortCatchup struct {
	Mode string `yaml:"mode" enum:"none,all" doc:"How much."`
	Most int    `yaml:"most" doc:"How many."`
}

// TestShort: a scalar stands for a struct with one key.
func TestShort(t *testing.T) {
	types := specs.Types{Sources: []specs.Type{{Name: "short", Doc: "For tests.", New: func() any { return &shortConfig{} }}}}
	for text, want := range map[string]string{
		"catchup: all":                  "all",
		"catchup: {mode: all, most: 3}": "all",
		"catchup: null":                 "",
		"catchup: some":                 `s.yaml:4:29: error[unknown-value] spec.short.e.catchup: ` + "`some` is not allowed here",
		"catchup: [all]":                `s.yaml:4:29: error[wrong-type] spec.short.e.catchup: expected a mapping`,
	} {
		l := specs.Loader{Types: types}.LoadBytes("s.yaml", []byte("apiVersion: engine/v1\nkind: EventSource\nmetadata: {name: s}\nspec: {short: {e: {"+text+"}}}\n"))
		if strings.Contains(want, "error[") {
			if len(l.Diagnostics) != 1 || !strings.HasPrefix(l.Diagnostics[0].String(), want) {
				t.Errorf("%s: %v, want %s", text, l.Diagnostics, want)
			}
			continue
		}
		if len(l.Diagnostics) > 0 {
			t.Errorf("%s: %v", text, l.Diagnostics)
			continue
		}
		if got := l.Resources[0].Spec.(*specs.EventSource).Events[0].Config.(*shortConfig).Catchup.Mode; got != want {
			t.Errorf("%s: mode %q, want %q", text, got, want)
		}
	}
	schema, err := specs.Schema(types)
	if err != nil || !strings.Contains(string(schema), `"anyOf"`) {
		t.Errorf("schema: %v, no anyOf", err)
	}
}
