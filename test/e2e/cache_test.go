package e2e

import (
	"io/fs"
	"path/filepath"
	"testing"
)

// TestSourcesCount looks at the files the binary was built from: go test takes
// a cached result only while the files a test looked at are the same.
func TestSourcesCount(t *testing.T) {
	for _, room := range []string{"bus", "cmd", "engine", "examples", "sensors", "sources", "specs", "triggers"} {
		files := 0
		if err := filepath.WalkDir(filepath.Join("..", "..", room), func(string, fs.DirEntry, error) error { files++; return nil }); err != nil || files < 2 {
			t.Fatalf("%s has %d files, error %v", room, files, err)
		}
	}
}
