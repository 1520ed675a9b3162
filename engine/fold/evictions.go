package fold

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
)

const (
	evictionsPrefix = "fold.evictions."
	// mostEvicted is about how many keys may be given up under one checkpoint:
	// what is written of them is one value.
	mostEvicted = 1024
	// evictionsTold is the least time between two alarms about one sensor.
	evictionsTold = time.Minute
)

// evicted is a key of a sensor that was given up, and the place of the sensor
// when the batch ended.
type evicted struct {
	sensor  string
	through uint64
	evaluate.Eviction
}

// evictions are the keys a sensor gave up between two checkpoints. Which goes
// depends on all others, so after a crash that left some states of after the
// checkpoint and not others, it cannot be found out again. So they are written
// before the states are; a state of after the checkpoint is then a proof that
// they are there, or that there were none.
type evictions struct {
	log     string
	through uint64 // the last event they are complete for
	list    []evaluate.Eviction
}

const evictionsVersion = 1

func (e *evictions) encode() []byte {
	b := append(make([]byte, 0, 64+48*len(e.list)), evictionsVersion)
	b = binary.AppendUvarint(b, uint64(len(e.log)))
	b = append(b, e.log...)
	b = binary.AppendUvarint(b, e.through)
	for _, ev := range e.list {
		b = binary.AppendUvarint(b, ev.Position)
		b = binary.AppendUvarint(b, uint64(len(ev.Key)))
		b = append(b, ev.Key...)
	}
	return b
}

func decodeEvictions(b []byte) (*evictions, error) {
	bad := errors.New("stored evictions are damaged")
	if len(b) == 0 || b[0] != evictionsVersion {
		return nil, bad
	}
	b = b[1:]
	number := func() (n uint64) {
		n, w := binary.Uvarint(b)
		if w <= 0 {
			b = nil
			return 0
		}
		b = b[w:]
		return n
	}
	text := func() string {
		n := number()
		if n > uint64(len(b)) {
			b = nil
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	e := &evictions{log: text(), through: number()}
	for len(b) > 0 {
		ev := evaluate.Eviction{Position: number(), Key: text()}
		if b == nil {
			return nil, bad
		}
		e.list = append(e.list, ev)
	}
	if e.log == "" || e.through == 0 {
		return nil, bad
	}
	return e, nil
}

// storeEvictions writes what was given up since the last checkpoint, before the
// states are written.
func (s *session) storeEvictions(list []evicted) error {
	bySensor := map[string]*evictions{}
	for _, ev := range list {
		if bySensor[ev.sensor] == nil {
			bySensor[ev.sensor] = &evictions{log: s.log}
		}
		e := bySensor[ev.sensor]
		e.through, e.list = ev.through, append(e.list, ev.Eviction)
	}
	for sensor, e := range bySensor {
		if e.through <= s.decided[sensor] { // what was repeated stands there, for longer
			delete(bySensor, sensor)
		}
	}
	if len(bySensor) == 0 {
		return nil
	}
	values := make(map[string][]byte, len(bySensor))
	for sensor, e := range bySensor {
		values[evictionsPrefix+bus.Token(sensor)] = e.encode()
	}
	return s.put(values, nil)
}

// loadEvictions finds out which evictions beyond the checkpoint are decided.
func (s *session) loadEvictions(ctx context.Context) error {
	lists := map[string]*evictions{}
	var stale []string
	err := s.d.o.Bus.State().Scan(ctx, evictionsPrefix, func(en bus.Entry) error {
		e, err := decodeEvictions(en.Value)
		if err != nil {
			s.d.o.Alarm("state-damaged", fmt.Sprintf("%s: %v; they are dropped", en.Key, err))
		}
		if err != nil || e.log != s.log {
			stale = append(stale, en.Key)
			return nil
		}
		if gone, err := s.isGone(ctx, e.through); err != nil || gone {
			stale = append(stale, en.Key)
			return err
		}
		lists[strings.TrimPrefix(en.Key, evictionsPrefix)] = e
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range stale {
		if err := s.d.o.Bus.State().Delete(ctx, key); err != nil {
			return err
		}
	}
	for l := range s.all {
		for i := range l.running {
			name := l.running[i].Name
			e := lists[bus.Token(name)]
			if e == nil || e.through <= l.pos {
				e = &evictions{}
			}
			if through := max(e.through, s.decided[name]); through > 0 {
				s.decided[name] = through
				s.trace(name, through, time.Time{})
				list := slices.DeleteFunc(e.list, func(ev evaluate.Eviction) bool { return ev.Position <= l.pos })
				l.eval.Decided(name, through, list)
			}
		}
	}
	return nil
}
