// Package jobs owns what happens between a firing and the end of its call:
// the job as it is stored, the partition consumers and the queue per trigger,
// parking, retries, dead letters and the run history. It must not know how a
// firing is decided, nor any concrete function kind or bus.
package jobs

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
)

// Job is one firing as it waits for its call.
type Job struct {
	// Key is the firing key and the idempotency key of every call.
	Key string
	// Sensor and Trigger say whose it is.
	Sensor, Trigger string
	// SpecHash is the hash of the Sensor that decided it.
	SpecHash string
	// Correlation is the correlation key.
	Correlation string
	// Flow, Item and Items are the firing's: the workflow it is a step of, its
	// place in a fan-out and the size of that.
	Flow        string
	Item, Items int
	// Position is the sequence of the last event folded when it was decided:
	// the job may leave JOBS once the checkpoint covers it.
	Position uint64
	// Trailing is true when Position may have been covered already when it was
	// decided, as by a deadline after the last event: then the job may leave
	// JOBS once a checkpoint covers its own place there, too.
	Trailing bool
	// Events are the contributing events.
	Events []sensors.Contribution
	// Last is the sequence of the event whose data is the default body, 0 for
	// none.
	Last uint64
	// Time is the log time of the firing.
	Time time.Time
	// Rendered is the JSON object of rendered templates, nil for none.
	Rendered []byte
	// Input is JSON that the function gets in place of what was rendered or of
	// the event's data, since somebody edited it; nil when nobody did.
	Input []byte
	// Late is true when the worker must render from the events.
	Late bool
	// Fault is the reason why the firing cannot be called, "" when it can.
	Fault string

	// Attempt counts the calls made so far.
	Attempt int
	// NotBefore is the earliest time of the next call, zero for now.
	NotBefore time.Time
	// Limited is true while it is parked since no call of its key is free; then
	// NotBefore is when one was expected.
	Limited bool
	// Error is the last failure.
	Error string
	// Redrive counts how often it came back from the dead letters.
	Redrive int
	// Since is when it was first parked or died.
	Since time.Time
	// Order is its sequence in JOBS, kept when it is parked so that it keeps its
	// turn; 0 while it is in JOBS.
	Order uint64
	// Spread is true when it is in the partition of its key and not in that of
	// its trigger, whatever the trigger says by now.
	Spread bool
	// Event is the embedded event Last, kept by dead letters so that they
	// outlive the purge of EVENTS. Of a job that is parked as [WhyResult] it is the
	// event that tells its result. It is nil elsewhere.
	Event *bus.Record
}

// NewJob is the job of a firing decided at position. Rendered values that are
// no JSON become its Fault.
func NewJob(sensor, specHash string, position uint64, f *sensors.Firing) *Job {
	j := &Job{
		Key: f.Key, Sensor: sensor, Trigger: f.Trigger, SpecHash: specHash, Correlation: f.Correlation,
		Flow: f.Flow, Item: f.Item, Items: f.Items, Spread: f.Spread,
		Position: position, Events: f.Events, Last: f.Last, Time: f.Time, Late: f.Late,
	}
	if f.Err != nil {
		j.Fault = f.Err.Error()
	}
	if len(f.Rendered) > 0 {
		b, err := json.Marshal(f.Rendered)
		if err != nil {
			j.Fault = fmt.Sprintf("rendered input is not JSON: %v", err)
		} else {
			j.Rendered = b
		}
	}
	return j
}

// MinSeq is the smallest event sequence the job refers to, 0 for none.
func (j *Job) MinSeq() uint64 {
	least := uint64(0)
	for _, e := range j.Events {
		if least == 0 || e.Seq < least {
			least = e.Seq
		}
	}
	return least
}

const jobVersion = 1

// flags of the encoded form.
const (
	flagLate = 1 << iota
	flagEvent
	flagTrailing
	flagFlow
	flagPlaces
	flagOrder
	flagInput
	flagLimited
	flagSpread
)

// Encode appends the stored form to b: a version byte, then fields in fixed
// order, integers as varints, strings and bytes with their length.
func (j *Job) Encode(b []byte) []byte {
	if b == nil {
		b = make([]byte, 0, 128+len(j.Key)+len(j.Sensor)+len(j.Trigger)+len(j.SpecHash)+len(j.Correlation)+32*len(j.Events)+len(j.Rendered))
	}
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = append(b, jobVersion)
	var flags uint64
	if j.Late {
		flags |= flagLate
	}
	if j.Event != nil {
		flags |= flagEvent
	}
	if j.Trailing {
		flags |= flagTrailing
	}
	if j.Flow != "" || j.Items != 0 {
		flags |= flagFlow
	}
	if slices.ContainsFunc(j.Events, func(c sensors.Contribution) bool { return c.Batch|c.Item != 0 }) {
		flags |= flagPlaces
	}
	if j.Order != 0 {
		flags |= flagOrder
	}
	if len(j.Input) > 0 {
		flags |= flagInput
	}
	if j.Limited {
		flags |= flagLimited
	}
	if j.Spread {
		flags |= flagSpread
	}
	b = binary.AppendUvarint(b, flags)
	b = binary.AppendUvarint(b, j.Position)
	str(j.Key)
	str(j.Sensor)
	str(j.Trigger)
	str(j.SpecHash)
	str(j.Correlation)
	b = binary.AppendUvarint(b, uint64(len(j.Events)))
	for _, e := range j.Events {
		str(e.Dependency)
		b = binary.AppendUvarint(b, e.Seq)
	}
	b = binary.AppendUvarint(b, j.Last)
	b = binary.AppendVarint(b, nanos(j.Time))
	b = binary.AppendUvarint(b, uint64(len(j.Rendered)))
	b = append(b, j.Rendered...)
	str(j.Fault)
	b = binary.AppendUvarint(b, uint64(j.Attempt))
	b = binary.AppendVarint(b, nanos(j.NotBefore))
	str(j.Error)
	b = binary.AppendUvarint(b, uint64(j.Redrive))
	b = binary.AppendVarint(b, nanos(j.Since))
	if j.Event != nil {
		str(j.Event.Subject)
		b = binary.AppendUvarint(b, j.Event.Seq)
		b = binary.AppendVarint(b, nanos(j.Event.Time))
		b = binary.AppendUvarint(b, uint64(len(j.Event.Header)))
		for k, v := range j.Event.Header {
			str(k)
			str(strings.Join(v, "\n"))
		}
		b = binary.AppendUvarint(b, uint64(len(j.Event.Data)))
		b = append(b, j.Event.Data...)
	}
	if flags&flagFlow != 0 { // last, where readers that do not know it leave it
		str(j.Flow)
		b = binary.AppendUvarint(b, uint64(j.Item))
		b = binary.AppendUvarint(b, uint64(j.Items))
	}
	if flags&flagPlaces != 0 {
		for _, c := range j.Events {
			b = binary.AppendUvarint(b, uint64(c.Batch))
			b = binary.AppendUvarint(b, uint64(c.Item))
		}
	}
	if flags&flagOrder != 0 {
		b = binary.AppendUvarint(b, j.Order)
	}
	if flags&flagInput != 0 {
		b = binary.AppendUvarint(b, uint64(len(j.Input)))
		b = append(b, j.Input...)
	}
	return b
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

var errShort = errors.New("job record is cut short")

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) fail() {
	d.err = errShort
	d.b = nil
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if d.err != nil || n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) str() string { return string(d.bytes()) }

// count reads a length that at least size bytes each must follow.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if d.err != nil || n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

// DecodeJob reverses [Job.Encode]. Rendered and Event's data share b.
func DecodeJob(b []byte) (*Job, error) {
	if len(b) == 0 || b[0] != jobVersion {
		return nil, errors.New("not a job record of this version")
	}
	d := decoder{b: b[1:]}
	j := &Job{}
	flags := d.uvarint()
	j.Late, j.Trailing = flags&flagLate != 0, flags&flagTrailing != 0
	j.Limited, j.Spread = flags&flagLimited != 0, flags&flagSpread != 0
	j.Position = d.uvarint()
	j.Key, j.Sensor, j.Trigger, j.SpecHash, j.Correlation = d.str(), d.str(), d.str(), d.str(), d.str()
	if n := d.count(2); n > 0 {
		j.Events = make([]sensors.Contribution, n)
		for i := range j.Events {
			j.Events[i] = sensors.Contribution{Dependency: d.str(), Seq: d.uvarint()}
		}
	}
	j.Last = d.uvarint()
	j.Time = fromNanos(d.varint())
	if r := d.bytes(); len(r) > 0 {
		j.Rendered = r
	}
	j.Fault = d.str()
	j.Attempt = int(d.uvarint())
	j.NotBefore = fromNanos(d.varint())
	j.Error = d.str()
	j.Redrive = int(d.uvarint())
	j.Since = fromNanos(d.varint())
	if flags&flagEvent != 0 {
		r := &bus.Record{Subject: d.str(), Seq: d.uvarint(), Time: fromNanos(d.varint())}
		n := d.count(2)
		r.Header = make(bus.Header, n)
		for range n {
			k := d.str()
			r.Header[k] = strings.Split(d.str(), "\n")
		}
		r.Data = d.bytes()
		j.Event = r
	}
	if flags&flagFlow != 0 {
		j.Flow, j.Item, j.Items = d.str(), int(d.uvarint()), int(d.uvarint())
	}
	if flags&flagPlaces != 0 {
		for i := range j.Events {
			j.Events[i].Batch, j.Events[i].Item = int(d.uvarint()), int(d.uvarint())
		}
	}
	if flags&flagOrder != 0 {
		j.Order = d.uvarint()
	}
	if flags&flagInput != 0 {
		j.Input = d.bytes()
	}
	if d.err != nil {
		return nil, d.err
	}
	return j, nil
}

// Partition is the partition of a trigger: all its jobs live in one, so that
// its limits are exact, unless they are spread.
func Partition(sensor, trigger string, partitions int) int {
	h := fnv.New32a()
	h.Write([]byte(sensor))
	h.Write([]byte{0})
	h.Write([]byte(trigger))
	return int(h.Sum32() % uint32(partitions))
}

// Partition is where the job lives: with the others of its trigger, or, when
// they are spread, where its key says, which comes to the same number in each.
func (j *Job) Partition(partitions int) int {
	if !j.Spread {
		return Partition(j.Sensor, j.Trigger, partitions)
	}
	h := fnv.New32a()
	h.Write([]byte(j.Key))
	return int(h.Sum32() % uint32(partitions))
}

// Subject is where the job is stored in JOBS.
func (j *Job) Subject(partitions int) string {
	return fmt.Sprintf("%s%d.%s.%s", bus.JobsPrefix, j.Partition(partitions), bus.Token(j.Sensor), bus.Token(j.Trigger))
}

// Why says what a parked job waits for; it is the last token of its subject.
type Why string

// The reasons for parking.
const (
	WhyRetry    Why = "retry"
	WhyOverflow Why = "overflow"
	// WhyResult: the job has ended, but EVENTS did not take the event that tells
	// how.
	WhyResult Why = "result"
)

func parkedSubject(sensor, trigger string, why Why) string {
	return bus.ParkedPrefix + bus.Token(sensor) + "." + bus.Token(trigger) + "." + string(why)
}

func dlqSubject(sensor, trigger string) string {
	return bus.DLQPrefix + bus.Token(sensor) + "." + bus.Token(trigger)
}
