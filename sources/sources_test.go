package sources

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/sensor-engine/engine/bus"
)

func TestNewID(t *testing.T) {
	const n = 10000
	ids := make([]string, n)
	seen := make(map[string]bool, n)
	for i := range ids {
		ids[i] = NewID()
		if seen[ids[i]] || len(ids[i]) != 26 {
			t.Fatalf("id %q is repeated or not 26 long", ids[i])
		}
		seen[ids[i]] = true
	}
	// Within a millisecond the order is random, beyond it is that of time.
	prefixes := make([]string, n)
	for i, id := range ids {
		prefixes[i] = id[:9]
	}
	if !slices.IsSorted(prefixes) {
		t.Error("ids do not sort by time")
	}
}

func BenchmarkNewID(b *testing.B) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			NewID()
		}
	})
}

func TestParsePath(t *testing.T) {
	for _, tt := range []struct {
		path string
		want []Segment
	}{
		{"/", []Segment{{Wild: true, Rest: true}}},
		{"/a", []Segment{{Text: "a"}}},
		{"/a/{$}", []Segment{{Text: "a"}, {}}},
		{"/a/{id}/b/{rest...}", []Segment{{Text: "a"}, {Text: "id", Wild: true}, {Text: "b"}, {Text: "rest", Wild: true, Rest: true}}},
		{"/ü/a.b-c~d", []Segment{{Text: "ü"}, {Text: "a.b-c~d"}}},
	} {
		got, err := ParsePath(tt.path)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("ParsePath(%q) = %v, %v; want %v", tt.path, got, err, tt.want)
		}
	}
	for _, path := range []string{
		"", "a", "//", "/a//b", "/./a", "/..", "/{}", "/{a", "/a}", "/x{a}", "/{a}x", "/{a}{b}", "/{a b}", "/{1a}", "/{a}/{a}",
		"/{a...}/b", "/{$}/b", "/{...}", "/a%20", "/a?b", "/a#b", "/a b", "/a\n", "/a\\b", "/{a.b}",
	} {
		if got, err := ParsePath(path); err == nil {
			t.Errorf("ParsePath(%q) = %v, want an error", path, got)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("/a/{b}/{c...}")
	f.Fuzz(func(t *testing.T, path string) {
		r := Route{Path: path}
		if segs, err := ParsePath(path); err == nil && (len(segs) == 0 || !Conflict(r, r)) {
			t.Errorf("%q has %d segments and does not conflict with itself", path, len(segs))
		}
	})
}

func TestConflict(t *testing.T) {
	get, post := []string{"GET"}, []string{"POST"}
	at := func(methods []string, path string, hosts ...string) Route {
		return Route{Methods: methods, Path: path, Hosts: hosts}
	}
	for _, tt := range []struct {
		a, b Route
		want bool
	}{
		{at(post, "/a"), at(post, "/a"), true},
		{at(post, "/a"), at(get, "/a"), false},
		{at(post, "/a"), at(nil, "/a"), false},
		{at([]string{"GET", "POST"}, "/a"), at(post, "/a"), true},
		{at(post, "/a/{x}"), at(post, "/a/b"), false},
		{at(post, "/a/{x}"), at(post, "/a/{y}"), true},
		{at(post, "/a/{x}"), at(post, "/{y}/b"), true},
		{at(post, "/a/{x}"), at(get, "/{y}/b"), false},
		{at(post, "/a/{x}"), at(nil, "/a/b"), true}, // POST /a/b: which one?
		{at(post, "/a/b"), at(nil, "/a/{x}"), false},
		{at(post, "/a/"), at(post, "/a/{x...}"), true},
		{at(post, "/a/"), at(post, "/a/{$}"), false},
		{at(post, "/a/"), at(post, "/a"), false},
		{at(post, "bad"), at(post, "bad"), false},
		{at(post, "/a", "x"), at(post, "/a"), false},
		{at(post, "/a", "x"), at(post, "/a", "y"), false},
		{at(post, "/a", "x", "y"), at(post, "/a", "y"), true},
	} {
		if got := Conflict(tt.a, tt.b); got != tt.want || Conflict(tt.b, tt.a) != tt.want {
			t.Errorf("Conflict(%v, %v) = %v, want %v in both directions", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("wrapped: %w", &EmitError{Stored: 2, Err: bus.ErrFull})
	var emit *EmitError
	if !errors.Is(err, bus.ErrFull) || !errors.As(err, &emit) || emit.Stored != 2 {
		t.Errorf("%v does not unwrap to its reason", err)
	}
	if p := (&Permanent{Err: bus.ErrTooLarge}); !errors.Is(p, bus.ErrTooLarge) || p.Error() != bus.ErrTooLarge.Error() {
		t.Errorf("%v does not unwrap to its reason", p)
	}
}
