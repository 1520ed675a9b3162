package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

const (
	hdrMsgID       = "Nats-Msg-Id"
	hdrExpectedSeq = "Nats-Expected-Last-Subject-Sequence"
	hdrTTL         = "Nats-TTL"
)

// everything is the filter that matches every subject of ours.
const everything = "engine.>"

// What a reader asks for at a time.
const (
	readBatch = 1024
	readBytes = 4 * mib
)

var (
	_ bus.Bus      = (*Bus)(nil)
	_ bus.Log      = (*stream)(nil)
	_ bus.Queue    = (*queue)(nil)
	_ bus.Store    = (*store)(nil)
	_ bus.Reader   = (*reader)(nil)
	_ bus.Delivery = (*delivery)(nil)
)

// newStream makes the handle of a stream. A guarded one refuses records while
// the disk is almost full. A follower may answer a direct get with an old
// state: where exact says that it matters, a replicated stream asks its leader.
func (b *Bus) newStream(name string, guarded, exact bool) *stream {
	n := b.streamName(name)
	return &stream{
		b: b, name: n, guarded: guarded, direct: !exact || b.o.Replicas == 1, appendWhat: "append to " + n,
		ackPrefix: []byte(`{"stream":"` + n + `","seq":`),
	}
}

// adopt takes the identity of the stream over.
func (lg *stream) adopt(id string) {
	if old := lg.identity(); old != "" && old != id {
		lg.b.o.Logger.Error("the stream was replaced by another one", "stream", lg.name, "was", old, "is", id)
		if lg.syncer != nil {
			lg.syncer.renumber()
		}
	}
	lg.id.Store(&id)
}

func (lg *stream) identity() string {
	if p := lg.id.Load(); p != nil {
		return *p
	}
	return ""
}

// failed keeps what an error says about the stream.
func (lg *stream) failed(err error) {
	switch {
	case errors.Is(err, bus.ErrFull):
		lg.full.Store(true)
		lg.b.wake()
	case errors.Is(err, bus.ErrUnavailable):
		lg.b.suspect.Store(true)
		lg.b.wake()
	}
}

// check refuses what must not be sent.
func (lg *stream) check(r *bus.Record) error {
	if lg.b.isClosed() {
		return fmt.Errorf("%s: the bus is %w", lg.appendWhat, bus.ErrClosed)
	}
	if lg.guarded {
		if why := lg.b.diskLow.Load(); why != nil {
			return fmt.Errorf("%s: %w: %s", lg.appendWhat, bus.ErrFull, *why)
		}
	}
	size := len(r.Data)
	if len(r.Header) > 0 || r.MsgID != "" {
		size += 14
		for k, vs := range r.Header {
			for _, v := range vs {
				size += len(k) + len(v) + 4
			}
		}
		if r.MsgID != "" {
			size += len(hdrMsgID) + len(r.MsgID) + 4
		}
	}
	if limit := lg.b.MaxPayload(); size > limit {
		return fmt.Errorf("%s: %w: %d bytes with headers, the limit is %d", lg.appendWhat, bus.ErrTooLarge, size, limit)
	}
	return nil
}

// publish sends a record with its headers and one more, if k is not "".
func (lg *stream) publish(ctx context.Context, r bus.Record, k, v string, done func(bus.Ack, error), w *waiter) error {
	if err := lg.check(&r); err != nil {
		return err
	}
	h := nats.Header(r.Header)
	if r.MsgID != "" {
		k, v = hdrMsgID, r.MsgID
	}
	if k != "" || r.Fence != nil {
		// The record's own map is the caller's: never write to it.
		own := headers.Get().(nats.Header)
		defer func() { clear(own); headers.Put(own) }()
		maps.Copy(own, h)
		if k != "" {
			own[k] = []string{v}
		}
		if r.Fence != nil {
			own[hdrExpectedSeq] = []string{strconv.FormatUint(*r.Fence, 10)}
		}
		h = own
	}
	return lg.b.pub.send(ctx, lg, lg.b.prefix+r.Subject, h, r.Data, done, w)
}

// On a cluster nobody serves a stream while it changes its leader.
const (
	leaderTries = 3
	leaderWait  = 250 * time.Millisecond
)

// publishWait sends a record and waits for its acknowledgement. What a cluster
// certainly did not take, because the stream had no leader, it sends again.
func (lg *stream) publishWait(ctx context.Context, r bus.Record, k, v string) (bus.Ack, error) {
	for try := 1; ; try++ {
		ack, err := lg.publishOnce(ctx, r, k, v)
		if err == nil || lg.b.o.Replicas == 1 || try == leaderTries || !errors.Is(err, nats.ErrNoResponders) {
			return ack, err
		}
		select {
		case <-time.After(leaderWait):
		case <-ctx.Done():
			return ack, err
		}
	}
}

func (lg *stream) publishOnce(ctx context.Context, r bus.Record, k, v string) (bus.Ack, error) {
	w := waiters.Get().(*waiter)
	if err := lg.publish(ctx, r, k, v, nil, w); err != nil {
		waiters.Put(w)
		return bus.Ack{}, err
	}
	select {
	case res := <-w.ch:
		waiters.Put(w)
		return res.ack, res.err
	case <-ctx.Done():
		// w is still known to its slot: leave it to the collector.
		return bus.Ack{}, fmt.Errorf("%s: waiting for the acknowledgement: %w", lg.appendWhat, ctx.Err())
	}
}

// Append implements [bus.Log].
func (lg *stream) Append(ctx context.Context, r bus.Record) (bus.Ack, error) {
	return lg.publishWait(ctx, r, "", "")
}

// AppendAsync implements [bus.Log].
func (lg *stream) AppendAsync(ctx context.Context, r bus.Record, done func(bus.Ack, error)) error {
	return lg.publish(ctx, r, "", "", done, nil)
}

// record converts a message that was delivered by a consumer.
func (lg *stream) record(m *message) bus.Record {
	return bus.Record{
		Subject: m.Subject[len(lg.b.prefix):], Header: ownHeader(m.Header), Data: m.Data,
		Seq: m.seq, Time: time.Unix(0, m.time),
	}
}

// ownHeader removes what JetStream added.
func ownHeader(h nats.Header) bus.Header {
	delete(h, hdrMsgID)
	delete(h, hdrExpectedSeq)
	if len(h) == 0 {
		return nil
	}
	return bus.Header(h)
}

func (lg *stream) filter(f string) string {
	if f == "" {
		return ""
	}
	return lg.b.prefix + f
}

// Read implements [bus.Log].
func (lg *stream) Read(ctx context.Context, from uint64, filter string) (bus.Reader, error) {
	r := lg.newReader(from, filter)
	if err := r.p.openFirst(ctx); err != nil {
		r.p.close()
		return nil, err
	}
	return r, nil
}

type reader struct {
	lg     *stream
	p      puller
	next   uint64
	buf    []bus.Record
	ready  []bus.Record // of buf, not yet returned
	heals  uint64       // of the syncer, when they were fetched
	failed error        // what was read may not be in the log any more
	closed bool
}

func (lg *stream) newReader(from uint64, filter string) *reader {
	r := &reader{lg: lg, next: max(from, 1)}
	id := lg.identity()
	r.p = puller{
		b: lg.b, what: "read " + lg.name, stream: lg.name, ordered: true, batch: readBatch,
		maxBytes: max(readBytes, lg.b.MaxPayload()+64*kib),
		create: func(ctx context.Context) (string, error) {
			if now, err := lg.currentID(ctx); err != nil {
				return "", err
			} else if now != id {
				return "", permanentError{fmt.Errorf("read %s: %w: it was %s, now it is %s", lg.name, bus.ErrReplaced, id, now)}
			}
			c := jetstream.ConsumerConfig{
				AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
				FilterSubject: lg.filter(filter), MemoryStorage: true, Replicas: 1,
				InactiveThreshold: 2 * pullExpires, MaxRequestMaxBytes: 0,
			}
			if r.next > 1 {
				c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.next
			}
			con, err := lg.b.js.CreateConsumer(ctx, lg.name, c)
			if err != nil {
				return "", connError("read "+lg.name, err)
			}
			return con.CachedInfo().Name, nil
		},
	}
	r.p.init()
	return r
}

// openFirst makes the consumer once, so that a wrong request is an error at
// once.
func (p *puller) openFirst(ctx context.Context) error {
	err := p.openOnce(ctx)
	if perm, ok := errors.AsType[permanentError](err); ok {
		return perm.error
	}
	return err
}

// Next implements [bus.Reader].
func (r *reader) Next(ctx context.Context, limit int) ([]bus.Record, error) {
	if r.closed {
		return nil, fmt.Errorf("read %s: the reader is %w", r.lg.name, bus.ErrClosed)
	}
	if r.failed != nil {
		return nil, r.failed
	}
	if len(r.ready) == 0 {
		if s := r.lg.syncer; s != nil {
			r.heals = s.heals.Load()
		}
		if err := r.fetch(ctx, limit); err != nil {
			return nil, err
		}
	}
	n := min(max(limit, 1), len(r.ready))
	if s := r.lg.syncer; s != nil && s.eager {
		synced, err := r.synced(ctx, s)
		if err != nil {
			return nil, err
		}
		n = min(n, synced)
	}
	out := r.ready[:n:n]
	r.ready = r.ready[n:]
	return out, nil
}

// fetch waits for records and takes up to limit of those that are there.
func (r *reader) fetch(ctx context.Context, limit int) error {
	clear(r.buf)
	r.buf = r.buf[:0]
	for len(r.buf) < max(limit, 1) {
		m, ok, err := r.p.next(ctx, len(r.buf) == 0)
		if err != nil {
			if len(r.buf) > 0 {
				break
			}
			return err
		}
		if !ok {
			break
		}
		r.next = m.seq + 1
		r.buf = append(r.buf, r.lg.record(&m))
	}
	r.ready = r.buf
	return nil
}

// synced waits until the first of the ready records is synced and returns how
// many are. A record that is not could be lost, and its sequence given to
// another one: nobody may act on it.
func (r *reader) synced(ctx context.Context, s *syncer) (int, error) {
	first, last := r.ready[0].Seq, r.ready[len(r.ready)-1].Seq
	for s.durable.Load() < first {
		err := s.wait(ctx, last)
		if heals := s.heals.Load(); err == nil && heals == r.heals {
			continue
		}
		if ctx.Err() == nil {
			if err == nil {
				err = fmt.Errorf("what was read may have been lost, for it could not be synced: %w", bus.ErrUnavailable)
			}
			r.failed = fmt.Errorf("read %s: %w", r.lg.name, err)
			err = r.failed
		}
		return 0, err
	}
	durable := s.durable.Load()
	if last <= durable {
		return len(r.ready), nil
	}
	n := sort.Search(len(r.ready), func(i int) bool { return r.ready[i].Seq > durable })
	return max(n, 1), nil
}

// Close implements [bus.Reader].
func (r *reader) Close() error {
	if !r.closed {
		r.closed = true
		r.p.close()
	}
	return nil
}

// stream asks for the state of the stream.
func (lg *stream) stream(ctx context.Context) (jetstream.Stream, error) {
	if lg.b.isClosed() {
		return nil, bus.ErrClosed
	}
	c := lg.b.call(ctx)
	s, err := lg.b.js.Stream(c.ctx, lg.name)
	return s, c.end(err)
}

// currentID asks for the identity of the stream.
func (lg *stream) currentID(ctx context.Context) (string, error) {
	s, err := lg.stream(ctx)
	if err != nil {
		return "", connError("look up stream "+lg.name, err)
	}
	return s.CachedInfo().Config.Metadata[metaID], nil
}

// get returns the record that a request asks for: by direct get, or, where a
// follower could answer with an old state, from the leader of the stream.
func (lg *stream) get(ctx context.Context, request getRequest) (bus.Record, error) {
	what := "get from " + lg.name
	if !lg.direct {
		return lg.getFromLeader(ctx, what, request)
	}
	m, err := lg.b.request(ctx, "$JS.API.DIRECT.GET."+lg.name, request.bytes())
	if err != nil {
		return bus.Record{}, connError(what, err)
	}
	if st := m.Header.Get("Status"); st != "" {
		if st == "404" {
			return bus.Record{}, fmt.Errorf("%s: %w", what, bus.ErrNotFound)
		}
		return bus.Record{}, fmt.Errorf("%s: %s %s: %w", what, st, m.Header.Get("Description"), bus.ErrUnavailable)
	}
	r, err := lg.directRecord(m)
	if err != nil {
		return r, fmt.Errorf("%s: %w", what, err)
	}
	return r, nil
}

// directRecord converts the answer to a direct get.
func (lg *stream) directRecord(m *nats.Msg) (r bus.Record, err error) {
	r = bus.Record{Subject: strings.TrimPrefix(m.Header.Get("Nats-Subject"), lg.b.prefix), Data: m.Data}
	if r.Seq, err = strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err != nil {
		return r, fmt.Errorf("unexpected answer: %w (%w)", bus.ErrUnavailable, err)
	}
	if r.Time, err = time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp")); err != nil {
		return r, fmt.Errorf("unexpected answer: %w (%w)", bus.ErrUnavailable, err)
	}
	for _, k := range [...]string{"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"} {
		delete(m.Header, k)
	}
	r.Header = ownHeader(m.Header)
	return r, nil
}

func (lg *stream) getFromLeader(ctx context.Context, what string, request getRequest) (bus.Record, error) {
	m, err := lg.b.request(ctx, "$JS.API.STREAM.MSG.GET."+lg.name, request.bytes())
	if err != nil {
		return bus.Record{}, connError(what, err)
	}
	if _, err := decodeReply(what, m.Data); err != nil {
		return bus.Record{}, err
	}
	var body struct {
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Hdrs    []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &body); err != nil {
		return bus.Record{}, fmt.Errorf("%s: unexpected answer: %w (%w)", what, bus.ErrUnavailable, err)
	}
	r := bus.Record{
		Subject: strings.TrimPrefix(body.Message.Subject, lg.b.prefix), Data: body.Message.Data,
		Seq: body.Message.Seq, Time: body.Message.Time,
	}
	if len(body.Message.Hdrs) > 0 {
		h, err := nats.DecodeHeadersMsg(body.Message.Hdrs)
		if err != nil {
			return bus.Record{}, fmt.Errorf("%s: unexpected answer: %w (%w)", what, bus.ErrUnavailable, err)
		}
		r.Header = ownHeader(h)
	}
	return r, nil
}

// getRequest is the body of a direct get.
type getRequest struct {
	Seq     uint64 `json:"seq,omitempty"`
	NextFor string `json:"next_by_subj,omitempty"`
	LastFor string `json:"last_by_subj,omitempty"`
	Batch   int    `json:"batch,omitempty"`
	Bytes   int    `json:"max_bytes,omitempty"`
}

func (g getRequest) bytes() []byte {
	b, err := json.Marshal(g)
	if err != nil {
		panic(err) // strings and a number
	}
	return b
}

// batch returns the records that a request with a Batch asks for; from the
// leader of the stream only the first. What came before an error counts.
func (lg *stream) batch(ctx context.Context, what string, request getRequest) ([]bus.Record, error) {
	if !lg.direct {
		request.Batch, request.Bytes = 0, 0
		if request.NextFor == "" {
			request.NextFor = lg.filter(everything)
		}
		r, err := lg.getFromLeader(ctx, what, request)
		if err != nil {
			return nil, err
		}
		return []bus.Record{r}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lg.b.o.AckTimeout)
	defer cancel()
	ch := make(chan *nats.Msg, request.Batch+8)
	sub, err := lg.b.rc.ChanSubscribe(nats.NewInbox(), ch)
	if err != nil {
		return nil, connError(what, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := lg.b.rc.PublishRequest("$JS.API.DIRECT.GET."+lg.name, sub.Subject, request.bytes()); err != nil {
		return nil, connError(what, err)
	}
	out := make([]bus.Record, 0, min(request.Batch, 64))
	for {
		select {
		case m := <-ch:
			if st := m.Header.Get("Status"); st != "" {
				if st == "503" {
					lg.b.suspect.Store(true)
					return out, connError(what, nats.ErrNoResponders)
				}
				return out, nil // the end of the batch, or nothing more
			}
			_, batched := m.Header["Nats-Num-Pending"]
			rec, err := lg.directRecord(m)
			if err != nil {
				return out, fmt.Errorf("%s: %w", what, err)
			}
			out = append(out, rec)
			if !batched {
				return out, nil // a server before 2.11 answers with a single record
			}
		case <-ctx.Done():
			return out, connError(what, ctx.Err())
		case <-lg.b.closed:
			return out, fmt.Errorf("%s: the bus is %w", what, bus.ErrClosed)
		}
	}
}

// GetBatch implements [bus.Log].
func (lg *stream) GetBatch(ctx context.Context, from uint64, limit, maxBytes int) ([]bus.Record, error) {
	what := "get from " + lg.name
	recs, err := lg.batch(ctx, what, getRequest{Seq: max(from, 1), Batch: min(max(limit, 1), readBatch), Bytes: max(maxBytes, 1)})
	if len(recs) > 0 {
		return recs, nil
	}
	if err == nil {
		err = fmt.Errorf("%s: %w", what, bus.ErrNotFound)
	}
	return nil, err
}

// Get implements [bus.Log].
func (lg *stream) Get(ctx context.Context, seq uint64) (bus.Record, error) {
	if seq == 0 {
		return bus.Record{}, fmt.Errorf("get record 0 from %s: %w", lg.name, bus.ErrNotFound)
	}
	return lg.get(ctx, getRequest{Seq: seq})
}

// Next implements [bus.Log].
func (lg *stream) Next(ctx context.Context, filter string, from uint64) (bus.Record, error) {
	if filter == "" {
		filter = everything
	}
	return lg.get(ctx, getRequest{Seq: max(from, 1), NextFor: lg.filter(filter)})
}

// Last implements [bus.Log].
func (lg *stream) Last(ctx context.Context, subject string) (bus.Record, error) {
	request := getRequest{LastFor: lg.filter(subject)}
	if lg.b.o.Replicas > 1 { // a follower may answer with an older one
		return lg.getFromLeader(ctx, "get from "+lg.name, request)
	}
	return lg.get(ctx, request)
}

// Delete implements [bus.Log].
func (lg *stream) Delete(ctx context.Context, seq uint64) error {
	what := "delete from " + lg.name
	b := append(strconv.AppendUint([]byte(`{"no_erase":true,"seq":`), seq, 10), '}')
	m, err := lg.b.request(ctx, "$JS.API.STREAM.MSG.DELETE."+lg.name, b)
	if err != nil {
		return connError(what, err)
	}
	r, err := decodeReply(what, m.Data)
	// A sequence beyond the ends is reported as a failure of the store.
	if errors.Is(err, bus.ErrNotFound) || r.Error != nil && r.Error.ErrCode == codeDeleteFailed &&
		(r.Error.Description == "stream store EOF" || r.Error.Description == "no message found") {
		return nil
	}
	return err
}

// PurgeTo implements [bus.Log].
func (lg *stream) PurgeTo(ctx context.Context, seq uint64) error {
	if seq <= 1 {
		return nil
	}
	what := "purge " + lg.name
	b := append(strconv.AppendUint([]byte(`{"seq":`), seq, 10), '}')
	m, err := lg.b.request(ctx, "$JS.API.STREAM.PURGE."+lg.name, b)
	if err != nil {
		return connError(what, err)
	}
	if _, err = decodeReply(what, m.Data); err != nil {
		return err
	}
	// A purge of everything leaves the numbering in a new file.
	return lg.Sync(ctx)
}

// Counts implements [bus.Log].
func (lg *stream) Counts(ctx context.Context, filter string) (map[string]uint64, error) {
	if filter == "" {
		filter = everything
	}
	s, err := lg.stream(ctx)
	if err != nil {
		return nil, connError("count "+lg.name, err)
	}
	// The library asks for page after page.
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(lg.filter(filter)))
	if err != nil {
		return nil, connError("count "+lg.name, err)
	}
	if lg.b.prefix == "" {
		if info.State.Subjects == nil {
			return map[string]uint64{}, nil
		}
		return info.State.Subjects, nil
	}
	out := make(map[string]uint64, len(info.State.Subjects))
	for k, n := range info.State.Subjects {
		out[strings.TrimPrefix(k, lg.b.prefix)] = n
	}
	return out, nil
}

// Info implements [bus.Log].
func (lg *stream) Info(ctx context.Context) (bus.LogInfo, error) {
	s, err := lg.stream(ctx)
	if err != nil {
		return bus.LogInfo{}, connError("look up stream "+lg.name, err)
	}
	i := s.CachedInfo()
	out := bus.LogInfo{
		ID: i.Config.Metadata[metaID], First: i.State.FirstSeq, Last: i.State.LastSeq,
		Records: i.State.Msgs, Bytes: i.State.Bytes,
	}
	if i.Config.MaxBytes > 0 {
		out.MaxBytes = uint64(i.Config.MaxBytes)
	}
	if i.State.Msgs == 0 {
		out.First = out.Last + 1
	} else {
		out.FirstTime, out.LastTime = i.State.FirstTime, i.State.LastTime
	}
	return out, nil
}
