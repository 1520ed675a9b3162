//go:build !linux

package bustest

import "testing"

// Dir is a new directory for a bus that ends with the test.
func Dir(t testing.TB) string { t.Helper(); return t.TempDir() }
