package webhook

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources/ingress"
)

const (
	structuredType = "application/cloudevents+json"
	batchType      = "application/cloudevents-batch+json"
)

// binary fills ev with the attributes in the ce-* headers of a request in the
// binary content mode.
func binary(ev *bus.Event, headers http.Header) *ingress.Refusal {
	version := ""
	for name, lines := range headers {
		attr, ok := strings.CutPrefix(name, "Ce-")
		if !ok || len(lines) == 0 {
			continue
		}
		value, ok := decodeHeader(lines[0])
		if !ok || len(lines) > 1 {
			return ingress.Refuse(http.StatusBadRequest, "the header %s is not a CloudEvents attribute", quote(name))
		}
		switch attr = strings.ToLower(attr); attr {
		case "specversion":
			version = value
		case "datacontenttype":
			return ingress.Refuse(http.StatusBadRequest, "in a binary CloudEvent, Content-Type takes the place of ce-datacontenttype")
		default:
			if ref := setAttribute(ev, attr, value); ref != nil {
				return ref
			}
		}
	}
	return finish(ev, version)
}

// structured reads the event of a structured request, or those of a batch.
func (h *handler) structured(mt string, body []byte) ([]*bus.Event, *ingress.Refusal) {
	switch mt {
	case structuredType:
		ev, ref := parseEvent(body)
		return []*bus.Event{ev}, ref
	case batchType:
	default:
		return nil, ingress.Refuse(http.StatusUnsupportedMediaType, "the CloudEvents format %s is not supported, send %s or %s", quote(mt), structuredType, batchType)
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(body, &raw); err != nil || raw == nil {
		return nil, ingress.Refuse(http.StatusBadRequest, "the body is not a JSON array of CloudEvents")
	}
	evs := make([]*bus.Event, len(raw))
	for i, one := range raw {
		ev, ref := parseEvent(one)
		if ref != nil {
			return nil, inBatch(ref, true, i)
		}
		evs[i] = ev
	}
	return evs, nil
}

func inBatch(ref *ingress.Refusal, batch bool, i int) *ingress.Refusal {
	if batch {
		ref.Text = "event " + strconv.Itoa(i) + " of the batch: " + ref.Text
	}
	return ref
}

// parseEvent reads an event in the JSON format. The SDK's reader is not used:
// it stops at an empty key, truncates numbers and ignores what follows.
func parseEvent(body []byte) (*bus.Event, *ingress.Refusal) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil || members == nil {
		return nil, ingress.Refuse(http.StatusBadRequest, "not a JSON object in the CloudEvents format")
	}
	ev := &bus.Event{}
	version := ""
	data, encoded := members["data"], members["data_base64"]
	delete(members, "data")
	delete(members, "data_base64")
	for name, raw := range members {
		value, ok, err := scalar(raw)
		switch {
		case err != nil:
			return nil, ingress.Refuse(http.StatusBadRequest, "the attribute %s %v", quote(name), err)
		case !ok: // null is the same as absent
		case name == "specversion":
			version = value
		default:
			if known(name) && raw[0] != '"' {
				return nil, ingress.Refuse(http.StatusBadRequest, "the attribute %s must be a string", quote(name))
			}
			if ref := setAttribute(ev, name, value); ref != nil {
				return nil, ref
			}
		}
	}
	if ref := setData(ev, data, encoded); ref != nil {
		return nil, ref
	}
	return ev, finish(ev, version)
}

func setData(ev *bus.Event, data, encoded json.RawMessage) *ingress.Refusal {
	given := len(data) > 0 && !bytes.Equal(data, []byte("null"))
	switch {
	case len(encoded) > 0 && !bytes.Equal(encoded, []byte("null")):
		var text string
		if json.Unmarshal(encoded, &text) != nil || given {
			return ingress.Refuse(http.StatusBadRequest, "an event has either data or data_base64, the latter a string")
		}
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return ingress.Refuse(http.StatusBadRequest, "data_base64 is not base64")
		}
		if len(raw) > 0 {
			ev.Data = raw
		}
		if ev.DataContentType != "" && len(raw) > 0 && bus.IsJSON(ev.DataContentType) && !bus.ValidJSON(raw) {
			return ingress.Refuse(http.StatusBadRequest, "data_base64 is not the JSON its datacontenttype claims")
		}
	case !given:
	case data[0] == '"' && !bus.IsJSON(ev.DataContentType):
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return ingress.Refuse(http.StatusBadRequest, "data is not a JSON value")
		}
		ev.Data = []byte(text)
	default:
		ev.Data = data
		if ev.DataContentType == "" {
			ev.DataContentType = "application/json" // what the format says
		}
	}
	return nil
}

// scalar returns the canonical string of an attribute's JSON value; ok is
// false for null.
func scalar(raw json.RawMessage) (value string, ok bool, err error) {
	switch raw[0] {
	case '"':
		err = json.Unmarshal(raw, &value)
		return value, true, err
	case 'n':
		return "", false, nil
	case 't', 'f':
		return string(raw), true, nil
	case '{', '[':
		return "", false, errors.New("must be a string, an integer or a boolean")
	}
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil && n >= math.MinInt32 && n <= math.MaxInt32 {
		return strconv.FormatInt(n, 10), true, nil
	}
	return "", false, errors.New("must be an integer of 32 bits, or a string")
}

func known(name string) bool {
	return slices.Contains([]string{"id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}, name)
}

// setAttribute sets a context attribute or extension.
func setAttribute(ev *bus.Event, name, value string) *ingress.Refusal {
	switch name {
	case "id":
		ev.ID = value
	case "source":
		ev.Source = value
	case "type":
		ev.Type = value
	case "subject":
		ev.Subject = value
	case "datacontenttype":
		ev.DataContentType = value
	case "dataschema":
		ev.DataSchema = value
	case "time":
		t, err := time.Parse(time.RFC3339Nano, value)
		if err != nil || t.Year() < 1 || t.Year() > 9999 {
			return ingress.Refuse(http.StatusBadRequest, "the attribute time must be a timestamp of RFC 3339")
		}
		ev.Time = t
		return nil
	default:
		for i := 0; i < len(name); i++ {
			if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
				return ingress.Refuse(http.StatusBadRequest, "the attribute name %s may have small letters and digits only", quote(name))
			}
		}
		if name == "" || name == "data" {
			return ingress.Refuse(http.StatusBadRequest, "an attribute cannot have the name %s", quote(name))
		}
		if ev.Extensions == nil {
			ev.Extensions = make(map[string]string, 4)
		}
		ev.Extensions[name] = value
		return nil
	}
	if value == "" {
		return ingress.Refuse(http.StatusBadRequest, "the attribute %s must not be empty", name)
	}
	return nil
}

// finish checks the event as a whole, by the rules of the SDK.
func finish(ev *bus.Event, version string) *ingress.Refusal {
	if version != event.CloudEventsVersionV1 {
		return ingress.Refuse(http.StatusBadRequest, "specversion must be 1.0, is %s", quote(version))
	}
	ev.ProducerID = true
	cx := event.EventContextV1{ID: ev.ID, Type: ev.Type}
	if source, err := url.Parse(ev.Source); err == nil {
		cx.Source = types.URIRef{URL: *source}
	}
	if ev.DataContentType != "" && ev.DataContentType != "application/json" {
		cx.DataContentType = &ev.DataContentType
	}
	if ev.DataSchema != "" {
		if cx.DataSchema = types.ParseURI(ev.DataSchema); cx.DataSchema == nil {
			return ingress.Refuse(http.StatusBadRequest, "dataschema is not a URI")
		}
	}
	if ev.Subject != "" {
		cx.Subject = &ev.Subject
	}
	wrong := cx.Validate()
	for _, name := range []string{"id", "source", "type", "datacontenttype", "dataschema", "subject"} {
		if err := wrong[name]; err != nil {
			return ingress.Refuse(http.StatusBadRequest, "the attribute %s is missing or not valid", name)
		}
	}
	return nil
}

// decodeHeader undoes the quoting and percent-encoding of a ce-* header.
func decodeHeader(s string) (string, bool) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		var b strings.Builder
		for i := 1; i < len(s)-1; i++ {
			if s[i] == '\\' && i+1 < len(s)-1 {
				i++
			}
			b.WriteByte(s[i])
		}
		s = b.String()
	}
	if strings.IndexByte(s, '%') >= 0 {
		var err error
		if s, err = url.PathUnescape(s); err != nil {
			return "", false
		}
	}
	return s, utf8.ValidString(s)
}

// quote writes what a producer sent into an answer, cut to what helps.
func quote(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strconv.QuoteToASCII(s)
}
