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
	for _, tt := range []struct {
		a, b Route
		want bool
	}{
		{Route{post, "/a"}, Route{post, "/a"}, true},
		{Route{post, "/a"}, Route{get, "/a"}, false},
		{Route{post, "/a"}, Route{nil, "/a"}, false},
		{Route{[]string{"GET", "POST"}, "/a"}, Route{post, "/a"}, true},
		{Route{post, "/a/{x}"}, Route{post, "/a/b"}, false},
		{Route{post, "/a/{x}"}, Route{post, "/a/{y}"}, true},
		{Route{post, "/a/{x}"}, Route{post, "/{y}/b"}, true},
		{Route{post, "/a/{x}"}, Route{get, "/{y}/b"}, false},
		{Route{post, "/a/{x}"}, Route{nil, "/a/b"}, true}, // POST /a/b: which one?
		{Route{post, "/a/b"}, Route{nil, "/a/{x}"}, false},
		{Route{post, "/a/"}, Route{post, "/a/{x...}"}, true},
		{Route{post, "/a/"}, Route{post, "/a/{$}"}, false},
		{Route{post, "/a/"}, Route{post, "/a"}, false},
		{Route{post, "bad"}, Route{post, "bad"}, false},
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
