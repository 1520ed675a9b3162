package schedule

import (
	_ "embed"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // zones are the same on a machine without its own
)

// Zones keeps each location once: parsed, one takes some kilobytes. Its zero
// value is ready; it is safe for concurrent use and must not be copied.
type Zones struct{ known sync.Map }

// Load returns the location with this name of the IANA database; "" is UTC. The
// zone of the machine ("Local") is none: replicas would not agree. What to write
// instead of a name that is an error is told by [ZoneHint].
func (z *Zones) Load(name string) (*time.Location, error) {
	switch strings.ToUpper(name) {
	case "", "UTC":
		return time.UTC, nil
	case "LOCAL":
		return nil, errors.New("the zone of the machine is not the same everywhere; name it")
	}
	if loc, ok := z.known.Load(name); ok {
		return loc.(*time.Location), nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("there is no time zone %q", name)
	}
	// The same zone under another name is another location: the name is shown.
	known, _ := z.known.LoadOrStore(strings.Clone(name), loc)
	return known.(*time.Location), nil
}

// zoneNames are the names of the IANA time zone database, one a line.
//
//go:embed zones.txt
var zoneNames string

// ZoneHint returns what to write instead of a name that [Zones.Load] has
// refused.
func ZoneHint(name string) string {
	if near := nearestZone(name); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "use a name of the IANA database such as Europe/Amsterdam"
}

// nearestZone returns the name most like the given one, or "".
func nearestZone(name string) string {
	const longest = 40
	if name == "" || len(name) > longest {
		return ""
	}
	want := zoneKey(name)
	best, at := "", 1+len(name)/4
	for known := range strings.Lines(zoneNames) {
		known = strings.TrimSuffix(known, "\n")
		key := zoneKey(known)
		d := distance(want, key)
		if _, city, ok := strings.Cut(key, "/"); ok && city != "" && !strings.Contains(want, "/") {
			d = min(d, distance(want, city[strings.LastIndexByte(city, '/')+1:])) // "amsterdam"
		}
		if d < at {
			best, at = known, d
		}
	}
	return best
}

func zoneKey(name string) string {
	return strings.NewReplacer(" ", "_", "-", "_").Replace(strings.ToLower(name))
}

// distance is the number of edits between two texts (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// span is a time in which a zone has one offset (seconds east of UTC): from
// start, before end. An open end is math.MinInt64 or Forever. The span before
// or after may have the same offset.
type span struct{ start, end, offset int64 }

func zoneAt(loc *time.Location, t int64) span {
	out := span{start: math.MinInt64, end: Forever}
	if loc == time.UTC {
		return out
	}
	at := time.Unix(t, 0).In(loc)
	start, end := at.ZoneBounds()
	if !start.IsZero() {
		out.start = start.Unix()
	}
	if !end.IsZero() {
		// On the last day of a leap year, Go returns an end in the past (the
		// years after the zone's table are taken for 365 days).
		if out.end = end.Unix(); out.end <= t {
			out.end = (floorDiv(t, Day) + 1) * Day
		}
	}
	_, seconds := at.Zone()
	out.offset = int64(seconds)
	return out
}

// Wall returns what a clock in the zone shows at an instant.
func Wall(loc *time.Location, t int64) int64 { return t + offset(loc, t) }

func offset(loc *time.Location, t int64) int64 {
	if loc == time.UTC {
		return 0
	}
	_, seconds := time.Unix(t, 0).In(loc).Zone()
	return int64(seconds)
}

// Instant returns when a clock in the zone shows a wall time, by the policy of
// this package: the first time of two; one that is never shown is read with the
// offset before the change. It is the inverse of [Wall] but for these.
func Instant(loc *time.Location, wall int64) int64 {
	t, _ := zoned{once{wall}, loc, true}.Next(wall - 2*Day)
	return t
}

// once is a single wall time.
type once struct{ wall int64 }

func (o once) next(after int64) (int64, bool) { return o.wall, after < o.wall }
