package evaluate

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestDeadlinesStayFew: a window that slides with each event and keys that come
// and go leave no more behind than what waits.
func TestDeadlinesStayFew(t *testing.T) {
	sp := &space{sensor: "s", keys: map[string]*Entry{}}
	spaces := map[string]*space{"s": sp}
	var d deadlines
	entry := func(key string) *Entry {
		if sp.keys[key] == nil {
			sp.keys[key] = &Entry{}
		}
		return sp.keys[key]
	}
	take := func(at int64, key string) {
		d.at(at, sp, key, entry(key))
		if d.crowded() {
			d.rebuild(spaces)
		}
	}
	for i := range 200_000 {
		take(int64(1_000_000+i), "slides")
		take(int64(2_000_000+i), fmt.Sprint(i))
		if i >= 10 {
			key := fmt.Sprint(i - 10)
			d.none(sp.keys[key])
			delete(sp.keys, key)
		}
	}
	if len(d.queue) > 8192 || d.waiting != 11 {
		t.Errorf("%d places for %d keys", len(d.queue), d.waiting)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 { // earlier and later
		take(rng.Int64N(100_000), fmt.Sprint(rng.IntN(5000)))
	}
	last, n := int64(0), 0
	for top := d.first(); top != nil; top = d.first() {
		if top.at < last || top.at != top.entry.wake || sp.keys[top.key] != top.entry {
			t.Fatalf("%d comes after %d, for a key that waits until %d", top.at, last, top.entry.wake)
		}
		last = top.at
		n++
		d.none(top.entry)
	}
	waiting := 0
	for _, en := range sp.keys {
		if en.waits {
			waiting++
		}
	}
	if waiting != 0 || d.waiting != 0 || n < 4000 {
		t.Errorf("%d came up, %d still wait", n, waiting)
	}
}
