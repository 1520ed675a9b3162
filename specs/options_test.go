package specs

import (
	"reflect"
	"testing"
)

func TestOptions(t *testing.T) {
	type below struct {
		Every Duration `yaml:"every" required:"true" min:"1s" max:"1h" doc:"How often." example:"5m"`
	}
	type shared struct {
		Size Size `yaml:"size" doc:"How much."`
	}
	type config struct {
		shared `yaml:",inline"`
		Mode   string          `yaml:"mode" enum:"a,b" doc:"Which."`
		One    *below          `yaml:"one" doc:"One."`
		Many   []below         `yaml:"many" doc:"Many."`
		Flat   below           `yaml:"flat" doc:"Not followed."`
		Texts  map[string]Text `yaml:"texts" doc:"Texts."`
		Secret SecretRef       `yaml:"secret" doc:"Secret."`
		On     bool            `yaml:"on" doc:"Whether."`
		N      float64         `yaml:"n" doc:"Number."`
		Pos    Pos             `yaml:"-"`
	}
	every := func(path string) Option {
		return Option{Path: path + "every", Type: "duration", Required: true, Min: "1s", Max: "1h", Doc: "How often.", Example: "5m"}
	}
	want := []Option{
		{Path: "size", Type: "size", Doc: "How much."},
		{Path: "mode", Type: "text", Enum: []string{"a", "b"}, Doc: "Which."},
		{Path: "one", Type: "object", Doc: "One."},
		every("one."),
		{Path: "many", Type: "list of object", Doc: "Many."},
		every("many[]."),
		{Path: "flat", Type: "object", Doc: "Not followed."},
		{Path: "texts", Type: "map of template text", Doc: "Texts."},
		{Path: "secret", Type: "{name, key} of a Secret", Doc: "Secret."},
		{Path: "on", Type: "boolean", Doc: "Whether."},
		{Path: "n", Type: "number", Doc: "Number."},
	}
	got := Options(&config{}, "Flat")
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
}
