package specs_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

func TestSchema(t *testing.T) {
	got, err := specs.Schema(loader().Types)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/schema.golden.json", string(got))
	again, err := specs.Schema(loader().Types)
	if err != nil || string(again) != string(got) {
		t.Errorf("the schema is not the same twice, %v", err)
	}
}

// TestSchemaReferences finds references to definitions that do not exist.
func TestSchemaReferences(t *testing.T) {
	got, err := specs.Schema(loader().Types)
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(got, &schema); err != nil {
		t.Fatal(err)
	}
	defs := schema["$defs"].(map[string]any)
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if r, ok := v["$ref"].(string); ok && defs[strings.TrimPrefix(r, "#/$defs/")] == nil {
				t.Errorf("%s does not exist", r)
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(schema)
}

func TestSchemaOfBadTypes(t *testing.T) {
	type inner struct {
		A string `yaml:"a"`
	}
	type bad struct {
		C chan int `yaml:"c" doc:"A channel."`
		I inner    `yaml:"i" doc:"A struct."`
	}
	_, err := specs.Schema(specs.Types{Sources: []specs.Type{{Name: "bad", New: func() any { return &bad{} }}}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"source-bad.c: fields of type chan int cannot be decoded",
		"source-bad.i.a: the field has no doc text",
		"source-bad: the type has no doc text",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
}
