// Package bus owns the contracts of the durable log: what an [Event] is, how
// it travels as a [Record], and what a [Bus] must promise. It holds no
// connection and does no I/O; the implementation over NATS JetStream lives in
// bus/jetstream. It must not know sources, sensors, functions or the engine.
package bus

import (
	"context"
	"errors"
	"time"
)

// Errors of the contract. Implementations wrap them, callers test with
// [errors.Is].
var (
	// ErrNotFound says that the record or key does not exist (any more).
	ErrNotFound = errors.New("not found")
	// ErrConflict says that a compare-and-set met another revision.
	ErrConflict = errors.New("revision conflict")
	// ErrFull says that the log refused a record because it reached its
	// limits, or the disk its watermark. The record is not stored; retry later.
	ErrFull = errors.New("log is full")
	// ErrTooLarge says that a record exceeds the payload limit of the bus.
	ErrTooLarge = errors.New("record is too large")
	// ErrUnavailable says that the bus cannot be reached at the moment; the
	// outcome of the operation is unknown.
	ErrUnavailable = errors.New("bus is unavailable")
	// ErrReplaced says that a stream is another one than before: recreated,
	// restored or exchanged. What was read of it so far has no continuation.
	ErrReplaced = errors.New("stream was replaced")
	// ErrClosed says that the bus or the reader was closed by its owner.
	ErrClosed = errors.New("closed")
)

// Header holds the headers of a record by name, case-sensitive, as in
// NATS (ADR-4). It has the shape of nats.Header, so it converts without a copy.
type Header map[string][]string

// Get returns the first value of name, or "".
func (h Header) Get(name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Record is one entry of a [Log].
type Record struct {
	// Subject is the full subject, tokens already encoded with [Token].
	Subject string
	// Header may be nil.
	Header Header
	// Data is the payload. The record owns it after it was handed over.
	Data []byte
	// MsgID is the dedup id of the log's window, "" for none. Write only.
	MsgID string
	// Fence, when not nil, lets the record in only while the last record of
	// its subject has this sequence (0: there is none); otherwise Append fails
	// with [ErrConflict], also for a record that is itself the last one, unless
	// it is told as a duplicate. Write only.
	Fence *uint64
	// Seq and Time are set by the log when the record is read.
	Seq  uint64
	Time time.Time
}

// Ack is the answer of a log to a stored record.
type Ack struct {
	// Seq is the sequence under which the record is stored.
	Seq uint64
	// Duplicate is true when a record with the same MsgID was stored before
	// within the dedup window; Seq is then that record's.
	Duplicate bool
}

// LogInfo describes a log at one moment.
type LogInfo struct {
	// ID is the random identity given to the stream when it was created. A
	// recreated or exchanged stream has another one.
	ID string
	// First and Last are the sequences stored; First = Last+1 when empty.
	First, Last uint64
	// Records, Bytes and MaxBytes tell the size; MaxBytes is 0 when unlimited.
	Records, Bytes, MaxBytes uint64
	// FirstTime and LastTime are the storage times, zero when empty.
	FirstTime, LastTime time.Time
}

// Log is one durable, append-only stream. All methods are safe for
// concurrent use and block until answered or ctx ends, unless stated
// otherwise.
type Log interface {
	// Append stores r and returns after the durable write was acknowledged.
	// A nil error means stored. [ErrFull], [ErrTooLarge] mean not stored;
	// any other error means that the outcome is unknown.
	Append(ctx context.Context, r Record) (Ack, error)
	// AppendAsync hands r to the log and calls done exactly once, from any
	// goroutine, when the log acknowledged or failed it; done must not block.
	// Records handed over by one goroutine are stored in that order. It blocks
	// only while too many acknowledgements are outstanding, until ctx ends.
	// When it returns an error, done is never called.
	AppendAsync(ctx context.Context, r Record, done func(Ack, error)) error
	// Read opens a reader of the records from sequence from on (0: the
	// first), in log order, whose subject matches filter ("" for all; NATS
	// wildcards). The caller closes it.
	Read(ctx context.Context, from uint64, filter string) (Reader, error)
	// Get returns the record with this sequence, or ErrNotFound.
	Get(ctx context.Context, seq uint64) (Record, error)
	// Next returns the first record with sequence ≥ from whose subject
	// matches filter, or ErrNotFound.
	Next(ctx context.Context, filter string, from uint64) (Record, error)
	// GetBatch returns the records from sequence from on, in log order: at most
	// limit, and none after those that hold maxBytes of payload together. It
	// returns at least one, or ErrNotFound.
	GetBatch(ctx context.Context, from uint64, limit, maxBytes int) ([]Record, error)
	// Last returns the last record of one subject, or ErrNotFound.
	Last(ctx context.Context, subject string) (Record, error)
	// Delete removes one record. Removing a missing one is no error.
	Delete(ctx context.Context, seq uint64) error
	// PurgeTo removes all records with a sequence < seq.
	PurgeTo(ctx context.Context, seq uint64) error
	// Counts returns the number of records per subject that matches filter.
	Counts(ctx context.Context, filter string) (map[string]uint64, error)
	// Info returns the state of the log.
	Info(ctx context.Context) (LogInfo, error)
	// Sync makes everything acknowledged so far survive a power loss, where
	// the bus is so configured, and returns at once otherwise. EVENTS, PARKED
	// and DLQ are then durable when they acknowledge; JOBS only with Sync; RUNS
	// never is, and Sync does nothing there. After an error the outcome of
	// what was acknowledged since the last Sync is unknown.
	Sync(ctx context.Context) error
}

// Reader reads a log in order, without gaps and without acknowledging: the
// position belongs to the caller. It survives reconnects by resuming after
// the last record it returned. It is not safe for concurrent use. A reader of
// a log that acknowledges only what is durable returns only that: what was
// read never disappears, and its sequence is never used again.
type Reader interface {
	// Next blocks until at least one record is there and returns up to max
	// of those that are ready, or the error of ctx. The slice is valid until
	// the next call; the records may be kept.
	Next(ctx context.Context, max int) ([]Record, error)
	// Close ends the reader and frees what it holds.
	Close() error
}

// Queue is a log whose records are removed one by one when worked off.
type Queue interface {
	Log
	// Partitions is the number of partitions, fixed when the stream was made.
	Partitions() int
	// Consume delivers the records of one partition until ctx ends, with at
	// most maxOutstanding unfinished at a time. It takes the partition over:
	// an older consumer of it is removed first. deliver is called from one
	// goroutine, in log order on first delivery; it should not block for
	// long. What is delivered and not finished is delivered again after a
	// wait, unless it is kept alive; the same record may come twice.
	Consume(ctx context.Context, partition, maxOutstanding int, deliver func(Delivery)) error
}

// Delivery is one record of a [Queue] in the hands of a worker.
type Delivery interface {
	// Record is what was delivered.
	Record() Record
	// Done removes the record from the queue. It does not wait for an answer.
	// After an error the record is delivered again.
	Done() error
	// InProgress asks for more time before the record is delivered again.
	InProgress() error
}

// Entry is one key of a [Store].
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Store is a small key-value store with compare-and-set. Keys consist of
// encoded tokens joined with '.', as in [Token].
type Store interface {
	// Get returns the last value of key, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// Put writes key without condition and returns its new revision.
	Put(ctx context.Context, key string, value []byte) (uint64, error)
	// Update writes key if its last revision is revision (0: it must not
	// exist) and returns the new one, or [ErrConflict].
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// PutAsync is Put with the rules of [Log.AppendAsync].
	PutAsync(ctx context.Context, key string, value []byte, done func(revision uint64, err error)) error
	// Delete removes key. Removing a missing one is no error. DeleteAsync is
	// the same with the rules of [Log.AppendAsync].
	Delete(ctx context.Context, key string) error
	DeleteAsync(ctx context.Context, key string, done func(revision uint64, err error)) error
	// Scan calls fn for each key below prefix ("a." for all of a) with its
	// last value, in no order, and stops at the first error.
	Scan(ctx context.Context, prefix string, fn func(Entry) error) error
	// Sync is [Log.Sync]: writes are durable only with it.
	Sync(ctx context.Context) error
}

// Health is what a bus says of itself.
type Health struct {
	// OK is false while events cannot be stored.
	OK bool
	// Reason says why not, for people; "" when OK.
	Reason string
	// RetryAfter is a hint for producers, 0 when OK.
	RetryAfter time.Duration
	// Since is when the state began.
	Since time.Time
}

// Bus is the durable heart of the engine: the streams of design §3. The
// engine opens one, owns it and closes it last.
type Bus interface {
	// Events is the log of every event, `engine.events.>`.
	Events() Log
	// Jobs is the work queue of firings,
	// `engine.jobs.<partition>.<sensor>.<trigger>`.
	Jobs() Queue
	// Parked holds jobs that wait: `engine.parked.<sensor>.<trigger>.<why>`.
	Parked() Log
	// DeadLetters holds jobs given up on, `engine.dlq.<sensor>.<trigger>`.
	DeadLetters() Log
	// Runs is the history, `engine.runs.<function>`; it drops the oldest.
	Runs() Log
	// FailedRuns is what failed of it once more, `engine.failed.<function>`, so
	// that it outlives what succeeded; it drops the oldest.
	FailedRuns() Log
	// State is the checkpoint, sensor state, cursors and accepted specs.
	State() Store
	// MaxPayload is the largest record in bytes, headers included.
	MaxPayload() int
	// Health tells whether events can be stored. It does not block.
	Health() Health
	// Close drains what is in flight, within ctx, and releases everything.
	Close(ctx context.Context) error
}
