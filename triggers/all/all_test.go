package all

import (
	"slices"
	"testing"
)

func TestAll(t *testing.T) {
	var names []string
	for _, f := range All() {
		if f.Make == nil || f.New == nil || f.Doc == "" {
			t.Errorf("%s is incomplete", f.Name)
		}
		if got := All().Lookup(f.Name); got == nil || got.Name != f.Name {
			t.Errorf("%s is not found", f.Name)
		}
		names = append(names, f.Name)
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("%v: sorted and unique, please", names)
	}
	if len(All().Types()) != len(names) || All().Lookup("none") != nil {
		t.Error("the registry does not hold what it lists")
	}
}
