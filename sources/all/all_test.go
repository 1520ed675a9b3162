package all_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sensor-engine/engine/sources/all"
)

// TestFolders holds the list against the folders: a type has one of its own
// name with an example, and every folder with an example is in the list.
func TestFolders(t *testing.T) {
	var listed []string
	for _, f := range all.All() {
		listed = append(listed, f.Name)
		if _, err := os.Stat(filepath.Join("..", f.Name, "contract_test.go")); err != nil {
			t.Errorf("%s does not run the contract suite: %v", f.Name, err)
		}
	}
	examples, err := filepath.Glob("../*/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var folders []string
	for _, p := range examples {
		folders = append(folders, filepath.Base(filepath.Dir(p)))
	}
	if slices.Sort(folders); !slices.Equal(listed, folders) {
		t.Errorf("All lists %v, the folders are %v", listed, folders)
	}
	if all.All().Lookup("webhook") == nil || all.All().Lookup("nothing") != nil {
		t.Error("Lookup does not find by name")
	}
}
