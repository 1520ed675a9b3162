package driver

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func TestContract(t *testing.T) {
	const n = 25
	dir := t.TempDir()
	sourcetest.Run(t, sourcetest.Case{
		Factory: Factory(),
		Config: func() any {
			return config(specs.Settings{"dir": dir, "n": strconv.Itoa(n)}, func(c *Config) { c.Secrets = []string{"shop"} })
		},
		Env:     environment(probe("work"), map[string]*specs.Secret{"shop": {Env: map[string]string{"pass-word": "X"}}}),
		Secrets: map[string]string{"shop/pass-word": "s3cret"},
		Drive: func(t *testing.T, h *sourcetest.Host) []string {
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			acknowledged := strings.Fields(content(t, filepath.Join(dir, "acknowledged")))
			if len(acknowledged) != n {
				t.Errorf("%d events acknowledged, want %d", len(acknowledged), n)
			}
			// What is on stdout is stored without an answer.
			eventually(t, "all of stdout is stored", func() bool {
				out := 0
				for _, ev := range h.Events() {
					if strings.HasPrefix(ev.ID, "out-") {
						out++
					}
				}
				return out == n
			})
			return acknowledged
		},
	})
}

var update = flag.Bool("update", false, "write the golden files")

func TestDiagnostics(t *testing.T) { sourcetest.Diagnostics(t, Factory(), *update) }

// TestCheck: what only the DriverType tells to be wrong, with its place.
func TestCheck(t *testing.T) {
	paths, err := filepath.Glob("testdata/check/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files (%v)", err)
	}
	f := Factory()
	loader := specs.Loader{Types: specs.Types{Sources: []specs.Type{f.Type}}}
	for _, path := range paths {
		loaded, err := loader.Load(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		set := loaded.Set()
		found := append(loaded.Diagnostics, loader.Check(set)...)
		resource := func(ref specs.Ref) *specs.Resource { return set.Resources[ref] }
		for _, r := range loaded.Resources {
			spec, ok := r.Spec.(*specs.EventSource)
			if !ok {
				continue
			}
			for _, ev := range spec.Events {
				ck := specs.NewChecker(r.Ref(), "spec."+ev.Type+"."+ev.Name, ev.Places)
				f.Check(ev.Config, sources.Env{Source: r.Metadata.Name, Event: ev.Name, Resource: resource}, ck)
				found = append(found, ck.Found()...)
			}
		}
		var b strings.Builder
		for _, d := range found {
			b.WriteString(d.String() + "\n")
		}
		golden := strings.TrimSuffix(path, ".yaml") + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatalf("%v (run with -update)", err)
		}
		if b.String() != string(want) {
			t.Errorf("%s:\n got\n%s\nwant\n%s", path, b.String(), want)
		}
	}
}

// TestDescribe: people see the command as it runs, without secrets, and the path.
func TestDescribe(t *testing.T) {
	typ := &specs.DriverType{Command: []string{"sh", "-c", "echo $1"}, Expose: true, SecretFlags: true, Set: specs.Settings{"seconds": "60", "debug": ""}}
	got := Factory().Describe(config(specs.Settings{"seconds": "5"}, func(c *Config) { c.Secrets = []string{"shop"} }), environment(typ, nil), time.Now())
	want := []sources.Detail{
		{Name: "Command", Values: []string{`sh -c "echo $1" --debug --seconds=5`}},
		{Name: "URL", Values: []string{"/drivers/test/event/"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("details %v, want %v", got, want)
	}
}
