package jetstream

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

// Metadata keys of our streams.
const (
	metaID         = "engine-id"
	metaPartitions = "engine-partitions"
)

// statePrefix is where STATE keeps its keys.
const statePrefix = "engine.state."

// definition is what a stream should be.
func (b *Bus) definitions() []jetstream.StreamConfig {
	l := b.o.Limits
	base := func(name, subject string, maxBytes int64) jetstream.StreamConfig {
		if maxBytes < 0 {
			maxBytes = -1
		}
		return jetstream.StreamConfig{
			Name:       b.streamName(name),
			Subjects:   []string{b.prefix + subject + ">"},
			Retention:  jetstream.LimitsPolicy,
			Discard:    jetstream.DiscardNew,
			Storage:    jetstream.FileStorage,
			MaxBytes:   maxBytes,
			Replicas:   b.o.Replicas,
			Duplicates: time.Second,

			MaxMsgs: -1, MaxMsgsPerSubject: -1,
		}
	}
	events := base("EVENTS", bus.EventsPrefix, l.Events)
	events.Duplicates = 10 * time.Minute

	jobs := base("JOBS", bus.JobsPrefix, l.Jobs)
	jobs.Retention = jetstream.WorkQueuePolicy
	// Only for lost acknowledgements; exactly-once is the dispatcher's work.
	jobs.Duplicates = 30 * time.Second
	jobs.Metadata = map[string]string{metaPartitions: strconv.Itoa(cmp.Or(b.partitions, b.o.Partitions))}

	parked := base("PARKED", bus.ParkedPrefix, l.Parked)
	parked.Duplicates = 30 * time.Second
	dlq := base("DLQ", bus.DLQPrefix, l.DeadLetters)
	dlq.Duplicates = 30 * time.Second

	runs := base("RUNS", bus.RunsPrefix, l.Runs)
	runs.Discard, runs.MaxAge = jetstream.DiscardOld, b.o.RunsAge
	failed := base("FAILED", bus.FailedPrefix, l.FailedRuns)
	failed.Discard, failed.MaxAge = jetstream.DiscardOld, b.o.FailedRunsAge

	state := base("STATE", statePrefix, l.State)
	state.MaxMsgsPerSubject = 1
	state.AllowMsgTTL = true

	all := []jetstream.StreamConfig{events, jobs, parked, dlq, runs, failed, state}
	for i := range all {
		all[i].AllowDirect = b.logs[i].direct
	}
	return all
}

// streamName is the name of a stream with the prefix.
func (b *Bus) streamName(name string) string {
	if b.o.Prefix == "" {
		return name
	}
	return b.o.Prefix + "_" + name
}

// reconcile makes the streams what they should be, and fills in the
// identities. It creates missing streams, updates limits, and refuses what
// cannot be changed.
func (b *Bus) reconcile(ctx context.Context) error {
	for i, want := range b.definitions() {
		lg := b.logs[i]
		info, err := b.reconcileStream(ctx, want)
		if err != nil {
			return err
		}
		lg.adopt(info.Config.Metadata[metaID])
		if lg == b.jobs {
			n, err := strconv.Atoi(info.Config.Metadata[metaPartitions])
			if err != nil || n < 1 {
				return fmt.Errorf("stream %s: its metadata has no number of partitions; it was not made by an engine: remove it or choose another prefix", want.Name)
			}
			switch b.partitions {
			case 0:
				b.partitions = n // in Open, before anybody asks
			case n:
			default:
				return fmt.Errorf("stream %s was replaced by one with %d instead of %d partitions: restart the engine", want.Name, n, b.partitions)
			}
		}
	}
	return nil
}

func (b *Bus) reconcileStream(ctx context.Context, want jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	what := "stream " + want.Name
	s, err := b.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		meta := map[string]string{metaID: rand.Text()}
		maps.Copy(meta, want.Metadata)
		want.Metadata = meta
		if s, err = b.js.CreateStream(ctx, want); err != nil {
			return nil, streamError("create "+what, err)
		}
		return s.CachedInfo(), nil
	}
	if err != nil {
		return nil, connError("look up "+what, err)
	}
	info := s.CachedInfo()
	have := info.Config
	if have.Metadata[metaID] == "" {
		return nil, fmt.Errorf("%s exists and was not made by an engine: remove it or choose another prefix", what)
	}
	for _, c := range []struct {
		name       string
		have, want any
		same       bool
	}{
		{"retention", have.Retention, want.Retention, have.Retention == want.Retention},
		{"storage", have.Storage, want.Storage, have.Storage == want.Storage},
		{"subjects", have.Subjects, want.Subjects, slices.Equal(have.Subjects, want.Subjects)},
	} {
		if !c.same {
			return nil, fmt.Errorf("%s has %s %v and needs %v, which cannot be changed: copy what it holds, remove it, or choose another prefix", what, c.name, c.have, c.want)
		}
	}
	if p := want.Metadata[metaPartitions]; p != "" && have.Metadata[metaPartitions] != p {
		b.o.Logger.Warn("the number of partitions is fixed when the stream is made; keeping it",
			"stream", want.Name, "partitions", have.Metadata[metaPartitions], "asked", p)
	}
	next := have
	next.MaxBytes, next.Replicas, next.Duplicates = want.MaxBytes, want.Replicas, want.Duplicates
	next.Discard, next.AllowDirect, next.MaxMsgsPerSubject = want.Discard, want.AllowDirect, want.MaxMsgsPerSubject
	next.MaxAge, next.MaxMsgs, next.AllowMsgTTL = want.MaxAge, -1, have.AllowMsgTTL || want.AllowMsgTTL
	if next.MaxBytes == have.MaxBytes && next.Replicas == have.Replicas && next.Duplicates == have.Duplicates &&
		next.Discard == have.Discard && next.AllowDirect == have.AllowDirect &&
		next.MaxMsgsPerSubject == have.MaxMsgsPerSubject && have.MaxAge == want.MaxAge && have.MaxMsgs == -1 &&
		next.AllowMsgTTL == have.AllowMsgTTL {
		return info, nil
	}
	if s, err = b.js.UpdateStream(ctx, next); err != nil {
		return nil, streamError("update "+what, err)
	}
	b.o.Logger.Info("stream updated", "stream", want.Name, "max_bytes", next.MaxBytes, "replicas", next.Replicas)
	return s.CachedInfo(), nil
}

// streamError adds what to do about a server that has no room.
func streamError(what string, err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && (int(api.ErrorCode) == codeResources || int(api.ErrorCode) == codeInsufficient) {
		return fmt.Errorf("%s: %w: the server's storage limit is below the limits of the streams: raise it (max_file_store) or lower the limits", what, err)
	}
	return connError(what, err)
}
