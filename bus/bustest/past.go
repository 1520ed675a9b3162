package bustest

import (
	"context"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// Past is b as if its events had been stored at other times: that with
// sequence n at times[n-1]. Events are appended and times are added before
// anybody reads them.
type Past struct {
	bus.Bus
	Times []time.Time
}

// Append appends an event that was stored at a time.
func (p *Past) Append(ctx context.Context, ev *bus.Event, at time.Time) error {
	p.Times = append(p.Times, at)
	_, err := p.Bus.Events().Append(ctx, ev.Record())
	return err
}

// Events is the log with the other times.
func (p *Past) Events() bus.Log { return &pastLog{p.Bus.Events(), p} }

func (p *Past) move(r *bus.Record) {
	if n := r.Seq; n > 0 && n <= uint64(len(p.Times)) {
		r.Time = p.Times[n-1]
	}
}

type pastLog struct {
	bus.Log
	past *Past
}

func (l *pastLog) Get(ctx context.Context, seq uint64) (bus.Record, error) {
	r, err := l.Log.Get(ctx, seq)
	l.past.move(&r)
	return r, err
}

func (l *pastLog) Next(ctx context.Context, filter string, from uint64) (bus.Record, error) {
	r, err := l.Log.Next(ctx, filter, from)
	l.past.move(&r)
	return r, err
}

func (l *pastLog) Last(ctx context.Context, subject string) (bus.Record, error) {
	r, err := l.Log.Last(ctx, subject)
	l.past.move(&r)
	return r, err
}

func (l *pastLog) GetBatch(ctx context.Context, from uint64, limit, maxBytes int) ([]bus.Record, error) {
	recs, err := l.Log.GetBatch(ctx, from, limit, maxBytes)
	for i := range recs {
		l.past.move(&recs[i])
	}
	return recs, err
}

func (l *pastLog) Read(ctx context.Context, from uint64, filter string) (bus.Reader, error) {
	r, err := l.Log.Read(ctx, from, filter)
	if err != nil {
		return nil, err
	}
	return &pastReader{r, l.past}, nil
}

type pastReader struct {
	bus.Reader
	past *Past
}

func (r *pastReader) Next(ctx context.Context, n int) ([]bus.Record, error) {
	recs, err := r.Reader.Next(ctx, n)
	for i := range recs {
		r.past.move(&recs[i])
	}
	return recs, err
}
