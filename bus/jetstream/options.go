// Package jetstream implements [bus.Bus] over NATS JetStream, on a server
// inside this process or on an existing one. It owns the connection, the
// embedded server with its store directory, the streams and their identity.
// It must not know what events, jobs or specs mean.
package jetstream

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// Options says where the bus lives and how large it may become. The zero
// value of every field but Dir or URL is its default.
type Options struct {
	// Dir is the store directory of the embedded server, `<data>/bus`. The
	// caller holds the lock of the data directory (bus/lock).
	Dir string
	// URL of an existing NATS server, several joined with commas; "" embeds
	// one.
	URL string
	// Credentials is the path of a .creds file for URL.
	Credentials string
	// TLS has the files for URL.
	TLS TLS

	// Prefix goes before every stream name and subject, so that several
	// engines share one account: letters, digits, '-' and '_'.
	Prefix string
	// Replicas of each stream on an external cluster; default 1.
	Replicas int
	// Partitions of JOBS, used only when the stream is made; default 16.
	Partitions int
	// Limits of the streams.
	Limits Limits
	// RunsAge and FailedRunsAge are how long the history and what failed of it
	// are kept; 0 for as long as there is room.
	RunsAge, FailedRunsAge time.Duration
	// MaxPayload is the largest record in bytes, headers included. Embedded:
	// the limit of the server, default 8 MiB, at most 64 MiB. External: the
	// least the server must offer; 0 takes what it offers.
	MaxPayload int
	// ListenPort opens the embedded server to clients on 127.0.0.1; 0 does
	// not, -1 takes a free port.
	ListenPort int
	// Durability says what an acknowledged record survives; default
	// [DurabilityOS]. [DurabilityFsync] is for the embedded server only.
	Durability Durability

	// AckTimeout is how long an acknowledgement may take; default 5 s.
	AckTimeout time.Duration
	// MaxOutstanding bounds the writes that wait for acknowledgement; default
	// 4096.
	MaxOutstanding int
	// RedeliverAfter is how long a job may stay unfinished without a sign of
	// life; default 30 s.
	RedeliverAfter time.Duration
	// MinFree is the free disk space in bytes under which the embedded bus
	// refuses new records; default 256 MiB or 5 % of the disk, what is more,
	// but never more than a quarter of the disk. Negative: no watermark.
	MinFree int64
	// Reserve is the size of a file in Dir that is given up when the disk is
	// full, so that the server can write its metadata and restart; default
	// 16 MiB, negative: none.
	Reserve int64
	// CheckInterval is how often disk, connection and streams are looked at;
	// default 1 s.
	CheckInterval time.Duration

	// Logger gets one line per change of state; default: discarded.
	Logger *slog.Logger

	// syncAlways makes the embedded server itself sync each write, for
	// comparison.
	syncAlways bool
	// syncs is how the disk is synced; tests set it.
	syncs syncs
	// disk tells the free space and the size of a directory's file system;
	// tests set it.
	disk func(dir string) (free, total int64, err error)
}

// TLS names the PEM files of a connection; all are optional, Cert and Key go
// together.
type TLS struct{ CA, Cert, Key string }

// Limits are the largest sizes of the streams in bytes. 0 is the default,
// negative means unlimited (external servers only).
type Limits struct {
	Events      int64 // default 10 GiB
	Jobs        int64 // default 4 GiB
	Parked      int64 // default 4 GiB
	DeadLetters int64 // default 1 GiB
	Runs        int64 // default 1 GiB
	FailedRuns  int64 // default 256 MiB
	State       int64 // default 4 GiB
}

func (o Options) withDefaults() (Options, error) {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.Limits.Events, 10*gib)
	def(&o.Limits.Jobs, 4*gib)
	def(&o.Limits.Parked, 4*gib)
	def(&o.Limits.DeadLetters, gib)
	def(&o.Limits.Runs, gib)
	def(&o.Limits.FailedRuns, 256*mib)
	def(&o.Limits.State, 4*gib)
	def(&o.Reserve, 16*mib)
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.Partitions == 0 {
		o.Partitions = 16
	}
	if o.AckTimeout <= 0 {
		o.AckTimeout = 5 * time.Second
	}
	if o.MaxOutstanding <= 0 {
		o.MaxOutstanding = 4096
	}
	if o.RedeliverAfter <= 0 {
		o.RedeliverAfter = 30 * time.Second
	}
	if o.CheckInterval <= 0 {
		o.CheckInterval = time.Second
	}
	if o.Durability == "" {
		o.Durability = DurabilityOS
	}
	if o.syncs == nil {
		o.syncs = diskSyncs{}
	}
	if o.disk == nil {
		o.disk = freeSpace
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.URL == "" {
		if o.MaxPayload == 0 {
			o.MaxPayload = 8 * mib
		}
		o.Replicas = 1
	}
	return o, o.check()
}

func (o *Options) check() error {
	embedded := o.URL == ""
	l := o.Limits
	switch {
	case embedded && o.Dir == "":
		return errors.New("bus: neither a store directory nor a URL is given")
	case embedded && (o.Credentials != "" || o.TLS != TLS{}):
		return errors.New("bus: credentials and TLS need the URL of a server")
	case embedded && min(l.Events, l.Jobs, l.Parked, l.DeadLetters, l.Runs, l.FailedRuns, l.State) < 0:
		return errors.New("bus: every stream of the embedded bus needs a limit")
	case (o.TLS.Cert == "") != (o.TLS.Key == ""):
		return errors.New("bus: a TLS certificate and its key go together; one is missing")
	case o.Durability != DurabilityOS && o.Durability != DurabilityFsync:
		return fmt.Errorf("bus: durability %q is neither os nor fsync", o.Durability)
	case !embedded && o.Durability == DurabilityFsync:
		return errors.New("bus: durability fsync is for the embedded bus: an external server does not tell its clients whether it syncs before it acknowledges; set sync_interval: always in its configuration, or use three replicas on machines that do not lose power together, and give durability os here")
	case o.MaxPayload < 0 || embedded && (o.MaxPayload < kib || o.MaxPayload > 64*mib):
		return fmt.Errorf("bus: a payload limit of %d bytes is outside 1 KiB to 64 MiB", o.MaxPayload)
	case o.Partitions < 1 || o.Partitions > 1024:
		return fmt.Errorf("bus: %d partitions are outside 1 to 1024", o.Partitions)
	case o.Replicas < 1 || o.Replicas > 5:
		return fmt.Errorf("bus: %d replicas are outside 1 to 5", o.Replicas)
	case strings.ContainsFunc(o.Prefix, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}):
		return fmt.Errorf("bus: prefix %q may hold only letters, digits, '-' and '_'", o.Prefix)
	}
	return nil
}
