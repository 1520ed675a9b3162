package webhook

import (
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/ingress"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// attributes gives events that are no CloudEvent their context attributes.
type attributes struct {
	typ, source, subject attribute
	idHeader             string // canonical
	id                   *expression.Program
	// dynamic is true when anything must be evaluated per event.
	dynamic, needData, needRequest bool
}

// attributesOf is how the events of a config get their attributes, outside of a
// request: see [sources.Factory].
func attributesOf(c *Config) func(ev *bus.Event) error {
	a, found := compileAttributes(c, fieldName)
	return func(ev *bus.Event) error {
		if found.HasErrors() {
			return found.Err()
		}
		ev.Type, ev.Subject = a.typ.text, a.subject.text
		if a.source.text != "" {
			ev.Source = a.source.text
		}
		env, err := ev.Attributes(a.needData, a.needRequest || a.idHeader != "")
		if err != nil {
			return err
		}
		request, _ := env["request"].(map[string]any)
		headers, _ := request["headers"].(map[string]any)
		if id, _ := headers[strings.ToLower(a.idHeader)].(string); id != "" {
			ev.ID, ev.ProducerID = id, true
		}
		if refused := a.render(ev, env); refused != nil {
			return errors.New(refused.Text)
		}
		return nil
	}
}

// fieldName is the path of a field in a config that was checked before.
func fieldName(field string) string { return field }

// attribute is a constant, or a template.
type attribute struct {
	text     string
	template *expression.Template
}

// compileAttributes compiles what c says of attributes; path gives the full
// path of a field.
func compileAttributes(c *Config, path func(field string) string) (attributes, specs.Diagnostics) {
	a := attributes{}
	var found specs.Diagnostics
	scope := expression.EventScope()
	text := func(t specs.Text, field string) attribute {
		if t.Path == "" {
			t.Path = path(field)
		}
		tmpl, ds := expression.CompileText(t, scope)
		found = append(found, ds...)
		if tmpl == nil {
			return attribute{}
		}
		if tmpl.Constant() {
			s, err := tmpl.RenderString(nil)
			if err != nil {
				s = t.Value
			}
			return attribute{text: s}
		}
		a.dynamic = true
		a.needData = a.needData || tmpl.NeedsData()
		a.needRequest = a.needRequest || tmpl.NeedsRequest()
		return attribute{template: tmpl}
	}
	a.typ, a.source, a.subject = text(c.Type, "type"), text(c.Source, "source"), text(c.Subject, "subject")
	if a.typ.text == "" {
		a.typ.text = DefaultType
	}
	if c.ID == nil {
		return a, found
	}
	if c.ID.Header != "" {
		a.idHeader = textproto.CanonicalMIMEHeaderKey(c.ID.Header)
	}
	if !c.ID.Expression.IsZero() {
		p, ds := expression.Compile(c.ID.Expression, path("id.expression"), scope, expression.WantAny)
		found = append(found, ds...)
		if a.id = p; p != nil {
			a.dynamic = true
			a.needData = a.needData || p.NeedsData()
			a.needRequest = a.needRequest || p.NeedsRequest()
		}
	}
	return a, found
}

// set sets id, type, source and subject. What an expression does not find in
// the event falls back to the default.
func (h *handler) set(ev *bus.Event, r *http.Request) *ingress.Refusal {
	a := &h.attrs
	ev.Type, ev.Source, ev.Subject = a.typ.text, a.source.text, a.subject.text
	if a.idHeader != "" {
		if v := r.Header[a.idHeader]; len(v) > 0 && v[0] != "" {
			if !utf8.ValidString(v[0]) {
				return ingress.Refuse(http.StatusBadRequest, "the id of the event is not UTF-8")
			}
			ev.ID, ev.ProducerID = v[0], true
		}
	}
	if a.dynamic {
		if ref := h.evaluate(ev, r); ref != nil {
			return ref
		}
	}
	if ev.ID == "" {
		ev.ID = sources.NewID()
	}
	return nil
}

func (h *handler) evaluate(ev *bus.Event, r *http.Request) *ingress.Refusal {
	a := &h.attrs
	stored := ev.Request
	if a.needRequest && stored == nil {
		ev.Request = ingress.AppendRequest(make([]byte, 0, 512), r, h.params, h.auth)
	}
	env, err := ev.Attributes(a.needData, a.needRequest)
	ev.Request = stored
	if err != nil {
		return ingress.Refuse(http.StatusBadRequest, "the body cannot be read as data")
	}
	return a.render(ev, env)
}

// render sets what expressions make of an event; env is the event as they see it.
func (a *attributes) render(ev *bus.Event, env map[string]any) *ingress.Refusal {
	for _, t := range []struct {
		name string
		from attribute
		to   *string
	}{{"type", a.typ, &ev.Type}, {"source", a.source, &ev.Source}, {"subject", a.subject, &ev.Subject}} {
		if t.from.template == nil {
			continue
		}
		s, err := t.from.template.RenderString(env)
		switch {
		case missing(err):
		case err != nil:
			return ingress.Refuse(http.StatusBadRequest, "the %s of the event cannot be made of this request", t.name)
		case s != "":
			*t.to = s
		}
	}
	if a.id == nil {
		return nil
	}
	v, err := a.id.Eval(env)
	if missing(err) || err == nil && v == nil {
		return nil
	}
	switch v := v.(type) {
	case string:
		ev.ID = v
	case int64:
		ev.ID = strconv.FormatInt(v, 10)
	case int:
		ev.ID = strconv.Itoa(v)
	case float64:
		ev.ID = strconv.FormatFloat(v, 'g', -1, 64)
	default:
		err = errors.ErrUnsupported
	}
	if err != nil {
		return ingress.Refuse(http.StatusBadRequest, "the id of the event cannot be made of this request")
	}
	ev.ProducerID = ev.ID != ""
	return nil
}

func missing(err error) bool {
	var m *expression.MissingError
	return errors.As(err, &m)
}
