package jetstream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

// metaOwner is the consumer metadata that tells who took a partition over.
const metaOwner = "engine-owner"

// queue is JOBS.
type queue struct{ *stream }

// Partitions implements [bus.Queue].
func (q *queue) Partitions() int { return q.b.partitions }

// Consume implements [bus.Queue]. It returns the error of ctx, or
// [bus.ErrConflict] when another one took the partition over.
func (q *queue) Consume(ctx context.Context, partition, maxOutstanding int, deliver func(bus.Delivery)) error {
	what := "consume partition " + strconv.Itoa(partition) + " of " + q.name
	if partition < 0 || partition >= q.b.partitions {
		return fmt.Errorf("%s: there are only %d", what, q.b.partitions)
	}
	maxOutstanding = max(maxOutstanding, 1)
	name := "p" + strconv.Itoa(partition)
	owner := rand.Text()
	taken := false        // the first time we take it, afterwards only what is ours
	var made atomic.Int64 // how many consumers were made
	p := puller{
		b: q.b, what: what, stream: q.name, batch: min(maxOutstanding, 4096),
		create: func(ctx context.Context) (string, error) {
			if taken {
				if err := q.stillOurs(ctx, name, owner); err != nil {
					return "", err
				}
			}
			if err := q.b.js.DeleteConsumer(ctx, q.name, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				return "", connError(what, err)
			}
			_, err := q.b.js.CreateConsumer(ctx, q.name, jetstream.ConsumerConfig{
				Durable: name, FilterSubject: q.b.prefix + bus.JobsPrefix + strconv.Itoa(partition) + ".>",
				DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
				AckWait: q.b.o.RedeliverAfter, MaxDeliver: -1, MaxAckPending: maxOutstanding,
				MaxWaiting: 64, MemoryStorage: true, InactiveThreshold: 10 * time.Minute,
				Metadata: map[string]string{metaOwner: owner},
			})
			if err != nil {
				return "", connError(what, err)
			}
			taken = true
			made.Add(1)
			return name, nil
		},
	}
	p.init()
	defer p.drop()
	defer q.b.removePuller(&p)
	for {
		m, _, err := p.next(ctx, true)
		if err != nil {
			return err
		}
		deliver(&delivery{q: q, rec: q.record(&m), reply: m.Reply, made: &made, consumer: made.Load()})
	}
}

// stillOurs tells a consumer that was lost, which is made again, from one
// that somebody else made, which is left alone. Whoever takes over deletes and
// creates at once, so we look a little later.
func (q *queue) stillOurs(ctx context.Context, name, owner string) error {
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	c, err := q.b.js.Consumer(ctx, q.name, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil
	}
	if err != nil {
		return connError("look up consumer "+name+" of "+q.name, err)
	}
	if now := c.CachedInfo().Config.Metadata[metaOwner]; now != owner {
		return permanentError{fmt.Errorf("partition %s of %s was taken over by another consumer: %w", name[1:], q.name, bus.ErrConflict)}
	}
	return nil
}

type delivery struct {
	q     *queue
	rec   bus.Record
	reply string
	// made counts the consumers of the partition; consumer is the one that
	// delivered this.
	made     *atomic.Int64
	consumer int64
}

// Record implements [bus.Delivery].
func (d *delivery) Record() bus.Record { return d.rec }

// Done implements [bus.Delivery]. An answer to a consumer that is gone would
// be lost without a word.
func (d *delivery) Done() error {
	if d.made.Load() != d.consumer {
		return fmt.Errorf("finish job in %s: its consumer was replaced, the job is delivered again: %w", d.q.name, bus.ErrUnavailable)
	}
	return connError("finish job in "+d.q.name, d.q.b.rc.Publish(d.reply, nil))
}

// inProgress is the payload that asks for more time.
var inProgress = []byte("+WPI")

// InProgress implements [bus.Delivery].
func (d *delivery) InProgress() error {
	return connError("keep job in "+d.q.name+" alive", d.q.b.rc.Publish(d.reply, inProgress))
}

// jobsPoll is how often a reader at the end of JOBS looks again.
const jobsPoll = 20 * time.Millisecond

// Read implements [bus.Log]. A work queue allows no consumer beside the
// workers', so it reads in batches of direct gets; at the end it asks again
// every 20 ms.
func (q *queue) Read(ctx context.Context, from uint64, filter string) (bus.Reader, error) {
	if filter == "" {
		filter = everything
	}
	return &queueReader{q: q, id: q.identity(), next: max(from, 1), filter: q.filter(filter)}, ctx.Err()
}

type queueReader struct {
	q      *queue
	id     string
	next   uint64
	filter string
	ready  []bus.Record // fetched and not yet returned
	closed bool
}

// Next implements [bus.Reader].
func (r *queueReader) Next(ctx context.Context, limit int) ([]bus.Record, error) {
	what := "read " + r.q.name
	tries := 0
	for len(r.ready) == 0 {
		if r.closed {
			return nil, fmt.Errorf("%s: the reader is %w", what, bus.ErrClosed)
		}
		if id := r.q.identity(); id != r.id {
			return nil, fmt.Errorf("%s: %w: it was %s, now it is %s", what, bus.ErrReplaced, r.id, id)
		}
		err := r.fetch(ctx)
		wait := jobsPoll
		switch {
		case len(r.ready) > 0:
			continue
		case err == nil, errors.Is(err, bus.ErrNotFound):
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, bus.ErrClosed):
			return nil, err
		default:
			wait = backoff(tries)
			tries++
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-r.q.b.closed:
			return nil, fmt.Errorf("%s: the bus is %w", what, bus.ErrClosed)
		}
	}
	n := min(max(limit, 1), len(r.ready))
	out := r.ready[:n:n]
	r.ready = r.ready[n:]
	return out, nil
}

// fetch reads the next batch. What came before an error counts.
func (r *queueReader) fetch(ctx context.Context) error {
	recs, err := r.q.batch(ctx, "read "+r.q.name, getRequest{
		Seq: r.next, NextFor: r.filter, Batch: readBatch, Bytes: max(readBytes, r.q.b.MaxPayload()+64*kib),
	})
	if n := len(recs); n > 0 {
		r.ready, r.next = recs, recs[n-1].Seq+1
	}
	return err
}

// Close implements [bus.Reader].
func (r *queueReader) Close() error {
	r.closed, r.ready = true, nil
	return nil
}
