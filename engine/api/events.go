package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/specs"
)

// Extension attributes that are added to events on their way out.
const (
	extSeq    = "engineseq"    // sequence in the log
	extStored = "enginestored" // log time
	extSource = "enginesource" // EventSource
	extEvent  = "engineevent"  // its event
)

// EncodeEvent is the event in the JSON format of CloudEvents, with its place
// in the log in extension attributes.
func EncodeEvent(ev *bus.Event) json.RawMessage {
	var b bytes.Buffer
	field := func(name, v string) {
		if v == "" {
			return
		}
		b.WriteByte(',')
		b.WriteString(quote(name) + ":" + quote(v))
	}
	b.WriteString(`{"specversion":"1.0","id":` + quote(ev.ID))
	field("source", ev.Source)
	field("type", ev.Type)
	field("subject", ev.Subject)
	if !ev.Time.IsZero() {
		field("time", ev.Time.Format(time.RFC3339Nano))
	}
	field("datacontenttype", ev.DataContentType)
	field("dataschema", ev.DataSchema)
	for _, name := range ev.ExtensionNames() {
		if !ours(name) {
			field(name, ev.Extensions[name])
		}
	}
	field(extSource, ev.EventSource)
	field(extEvent, ev.EventName)
	if ev.Seq > 0 {
		b.WriteString(`,"` + extSeq + `":` + quote(strconv.FormatUint(ev.Seq, 10)))
		field(extStored, ev.StoredAt.UTC().Format(time.RFC3339Nano))
	}
	switch v, err := ev.Value(); {
	case len(ev.Data) == 0:
	case err == nil && bus.IsJSON(ev.DataContentType) && bus.ValidJSON(ev.Data):
		b.WriteString(`,"data":`)
		_ = json.Compact(&b, ev.Data) // it is valid
	default:
		if text, ok := v.(string); ok && err == nil && ev.DataContentType != "" {
			b.WriteString(`,"data":` + quote(text))
		} else {
			b.WriteString(`,"data_base64":"` + base64.StdEncoding.EncodeToString(ev.Data) + `"`)
		}
	}
	b.WriteByte('}')
	return b.Bytes()
}

// ours reports whether an extension is one of those added on the way out.
func ours(name string) bool {
	return name == extSeq || name == extStored || name == extSource || name == extEvent
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string can always be encoded
	return string(b)
}

// eventFilter selects events.
type eventFilter struct {
	source, event, typ string
	since              time.Time
	limit              int
}

// subject is the coarsest filter the log can apply.
func (f eventFilter) subject() string {
	token := func(s string) string {
		if s == "" || specs.IsGlob(s) {
			return "*"
		}
		return bus.Token(s)
	}
	return bus.EventsPrefix + token(f.source) + "." + token(f.event)
}

func (f eventFilter) matches(ev *bus.Event) bool {
	return (f.source == "" || specs.MatchGlob(f.source, ev.EventSource)) && (f.event == "" || specs.MatchGlob(f.event, ev.EventName)) &&
		(f.typ == "" || specs.MatchGlob(f.typ, ev.Type))
}

// search looks for the newest of them.
func (f eventFilter) search() replay.Search {
	return replay.Search{Subject: f.subject(), Since: f.since, Match: f.matches, Limit: f.limit}
}

func filterOf(r *http.Request, limit int) (f eventFilter, err error) {
	q := r.URL.Query()
	f = eventFilter{source: q.Get("source"), event: q.Get("event"), typ: q.Get("type")}
	if f.since, err = moment(q.Get("since")); err != nil {
		return f, err
	}
	f.limit, err = number(r, "limit", limit, 0, 10_000)
	return f, err
}

// moment reads a time, absolute or as a length of time before now.
func moment(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := engine.Moment(s)
	if err != nil {
		return t, badRequest("since must be a time such as 2026-01-31T12:00:00Z or a duration such as 10m, not %q", s)
	}
	return t, nil
}

func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	follow, err := flag(r, "follow")
	if err != nil {
		return err
	}
	limit := 50
	if follow {
		limit = 10
	}
	f, err := filterOf(r, limit)
	if err != nil {
		return err
	}
	ctx, cancel := within(r)
	defer cancel()
	info, err := s.e.Bus().Events().Info(ctx)
	if err != nil {
		return err
	}
	found, complete, err := replay.Newest(ctx, s.e.Bus().Events(), info, f.search(), replay.DefaultBounds())
	if err != nil {
		return err
	}
	if follow {
		cancel()
		return s.follow(w, r, s.e.Bus().Events(), f.subject(), info.Last+1, func(st *stream) error {
			for _, ev := range found {
				if err := st.line(EncodeEvent(ev)); err != nil {
					return err
				}
			}
			return nil
		}, func(st *stream, rec bus.Record) error {
			ev, err := bus.DecodeEvent(rec)
			if err != nil || !f.matches(ev) {
				return nil //nolint:nilerr // what is no event is nobody's business here
			}
			return st.line(EncodeEvent(ev))
		})
	}
	if !complete {
		w.Header().Set("Engine-Incomplete", "older events were not looked at")
	}
	var b bytes.Buffer
	b.WriteByte('[')
	for i, ev := range found {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(EncodeEvent(ev))
	}
	b.WriteString("]\n")
	write(w, http.StatusOK, event.ApplicationCloudEventsBatchJSON, s.e.Mask(b.Bytes()))
	return nil
}

// Emitted tells where an ingested event is.
type Emitted struct {
	ID string `json:"id"`
	// Seq is its sequence in the log.
	Seq uint64 `json:"seq"`
	// Duplicate is true when it was stored before.
	Duplicate bool `json:"duplicate,omitempty"`
}

// maxBatch is the largest body of a batch, in bytes.
const maxBatch = 16 << 20

// emit stores CloudEvents sent in any of the HTTP content modes.
func (s *server) emit(w http.ResponseWriter, r *http.Request) error {
	limit := s.e.Bus().MaxPayload()
	batch := cehttp.IsHTTPBatch(r.Header)
	if batch {
		limit = max(limit, maxBatch)
	}
	r.Body = http.MaxBytesReader(w, r.Body, int64(limit))
	in, err := received(r, batch)
	if err != nil {
		return err
	}
	evs := make([]*bus.Event, len(in))
	for i := range in {
		if evs[i], err = fromSDK(&in[i]); err != nil {
			if batch {
				return badRequest("event %d: %v", i, err)
			}
			return badRequest("%v", err)
		}
	}
	ctx, cancel := within(r)
	defer cancel()
	out := struct {
		Events []Emitted `json:"events"`
		Error  string    `json:"error,omitempty"`
	}{Events: []Emitted{}}
	for _, ev := range evs {
		ack, err := s.e.Emit(ctx, ev)
		if err != nil && len(out.Events) == 0 {
			return err
		}
		if err != nil {
			out.Error = fmt.Sprintf("event %d and those after it are not stored: %v", len(out.Events), err)
			reply(w, http.StatusServiceUnavailable, out)
			return nil
		}
		out.Events = append(out.Events, Emitted{ID: ev.ID, Seq: ack.Seq, Duplicate: ack.Duplicate})
	}
	reply(w, http.StatusAccepted, out)
	return nil
}

// received decodes the events of a request.
func received(r *http.Request, batch bool) ([]event.Event, error) {
	var in []event.Event
	var err error
	// The SDK leaves the percent-encoding of binary mode (HTTP binding
	// §3.1.3.2) to us.
	for name, values := range r.Header {
		if strings.HasPrefix(name, "Ce-") {
			for i := range values {
				if v, err := url.PathUnescape(values[i]); err == nil {
					values[i] = v
				}
			}
		}
	}
	if batch {
		in, err = cehttp.NewEventsFromHTTPRequest(r)
	} else {
		var ev *event.Event
		if ev, err = cehttp.NewEventFromHTTPRequest(r); err == nil {
			in = []event.Event{*ev}
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, err
	case err != nil:
		return nil, badRequest("not a CloudEvent (send ce-* headers, or application/cloudevents+json): %v", err)
	}
	return in, nil
}

// fromSDK checks an event and converts it.
func fromSDK(in *event.Event) (*bus.Event, error) {
	if err := in.Validate(); err != nil {
		return nil, fmt.Errorf("not a valid CloudEvent: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	ev := &bus.Event{
		ID: in.ID(), Source: in.Source(), Type: in.Type(), Subject: in.Subject(), Time: in.Time(),
		DataContentType: in.DataContentType(), DataSchema: in.DataSchema(), Data: slices.Clone(in.Data()), ProducerID: true,
	}
	for name, v := range in.Extensions() {
		if ours(name) {
			continue
		}
		text, err := types.Format(v)
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", name, err)
		}
		if ev.Extensions == nil {
			ev.Extensions = map[string]string{}
		}
		ev.Extensions[name] = text
	}
	if bus.IsJSON(ev.DataContentType) && ev.DataContentType != "" && len(ev.Data) > 0 && !bus.ValidJSON(ev.Data) {
		return nil, errors.New("its data is not the JSON its datacontenttype says")
	}
	return ev, nil
}
