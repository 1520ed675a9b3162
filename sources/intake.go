package sources

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// Intake is a compiled [specs.Intake] without its rate limit: what decides
// which of the incoming events are stored, and as what. It is immutable and
// safe for concurrent use.
type Intake struct {
	filter, dedup *expression.Program
	typ, subject  *expression.Template
	data          *expression.Template
	labels        []label

	needsData, needsRequest bool
	fieldReads              []expression.FieldRead
}

// reader is a program or template that tells what it reads.
type reader interface {
	NeedsData() bool
	NeedsRequest() bool
	FieldReads() []expression.FieldRead
}

type label struct {
	name string
	text *expression.Template
}

// ProblemExtension is the extension attribute of an event that could not be
// given its id, type, subject, data or labels, and was stored without; it says why.
const ProblemExtension = "intakeproblem"

// CompileIntake compiles what an event says of its intake; nil when it says
// nothing. Diagnostics have places but no Ref.
func CompileIntake(in *specs.Intake, path string) (*Intake, specs.Diagnostics) {
	if in.Filter.IsZero() && in.Dedup.IsZero() && in.Type.Value == "" && in.Subject.Value == "" && !in.Data.Set && len(in.Labels) == 0 {
		return nil, nil
	}
	i, scope := &Intake{}, expression.EventScope()
	var found specs.Diagnostics
	needs := func(p reader) {
		i.needsData = i.needsData || p.NeedsData()
		i.needsRequest = i.needsRequest || p.NeedsRequest()
		i.fieldReads = append(i.fieldReads, p.FieldReads()...)
	}
	program := func(e specs.Expr, key string, want expression.Want) *expression.Program {
		if e.IsZero() {
			return nil
		}
		p, ds := expression.Compile(e, path+"."+key, scope, want)
		if found = append(found, ds...); p != nil {
			needs(p)
		}
		return p
	}
	text := func(t specs.Text) *expression.Template {
		if t.Value == "" {
			return nil
		}
		c, ds := expression.CompileText(t, scope)
		if found = append(found, ds...); c != nil {
			needs(c)
		}
		return c
	}
	i.filter, i.dedup = program(in.Filter, "filter", expression.WantBool), program(in.Dedup, "dedup", expression.WantAny)
	i.typ, i.subject = text(in.Type), text(in.Subject)
	if in.Data.Set {
		var ds specs.Diagnostics
		i.data, ds = expression.CompileTemplate(in.Data, scope)
		if found = append(found, ds...); i.data != nil {
			needs(i.data)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in.Labels)) {
		i.labels = append(i.labels, label{name, text(in.Labels[name])})
	}
	if found.HasErrors() {
		return nil, found
	}
	return i, found
}

// NeedsRequest reports whether an expression reads `request`.
func (i *Intake) NeedsRequest() bool { return i != nil && i.needsRequest }

// FieldReads lists where expressions read fields of the incoming data.
func (i *Intake) FieldReads() []expression.FieldRead {
	if i == nil {
		return nil
	}
	return i.fieldReads
}

// Verdict is what an intake did with an event.
type Verdict uint8

// The verdicts. With Missing and Failed the error says what is wrong.
const (
	// Accepted: the event is stored.
	Accepted Verdict = iota
	// Filtered: the filter does not want it.
	Filtered
	// FilterMissing: the filter asks for something the event does not have;
	// it is not stored.
	FilterMissing
	// FilterFailed: the filter failed; the event is not stored.
	FilterFailed
	// Unshaped: it is stored as it came, with [ProblemExtension], because the
	// rest could not be computed.
	Unshaped
)

// Apply returns the event to store, which is ev itself, unchanged, when there
// is nothing to change, and nil when it is not to be stored.
func (i *Intake) Apply(ev *bus.Event) (*bus.Event, Verdict, error) {
	if i == nil {
		return ev, Accepted, nil
	}
	env, err := ev.Attributes(i.needsData, i.needsRequest)
	if i.filter != nil {
		keep := false
		if err == nil {
			keep, err = i.filter.Bool(env)
		}
		switch _, missing := errors.AsType[*expression.MissingError](err); {
		case missing:
			return nil, FilterMissing, fmt.Errorf("filter: %w", err)
		case err != nil:
			return nil, FilterFailed, fmt.Errorf("filter: %w", err)
		case !keep:
			return nil, Filtered, nil
		}
	}
	out := ev.Derive()
	if err == nil {
		err = i.shape(out, env)
	}
	if err != nil {
		out = ev.Derive()
		extend(out, ProblemExtension, err.Error())
		return out, Unshaped, err
	}
	return out, Accepted, nil
}

// shape computes what the event becomes from what it was.
func (i *Intake) shape(ev *bus.Event, env map[string]any) error {
	if i.dedup != nil {
		id, err := i.dedup.Eval(env)
		if err != nil {
			return fmt.Errorf("dedup: %w", err)
		}
		if ev.ID, err = idText(id); err != nil {
			return fmt.Errorf("dedup: %w", err)
		}
		ev.ProducerID = true
	}
	for _, f := range [...]struct {
		name string
		t    *expression.Template
		to   *string
	}{{"type", i.typ, &ev.Type}, {"subject", i.subject, &ev.Subject}} {
		if f.t == nil {
			continue
		}
		s, err := f.t.RenderString(env)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if s == "" {
			return fmt.Errorf("%s: it is empty", f.name)
		}
		*f.to = s
	}
	for _, l := range i.labels {
		s, err := l.text.RenderString(env)
		if err != nil {
			return fmt.Errorf("labels.%s: %w", l.name, err)
		}
		extend(ev, l.name, s)
	}
	if i.data == nil {
		return nil
	}
	value, err := i.data.Render(env)
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	if ev.Data, err = json.Marshal(value); err != nil {
		return fmt.Errorf("data: %w", err)
	}
	ev.DataContentType = "application/json"
	return nil
}

// idText is the text of a value that can tell events apart.
func idText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		if v != "" {
			return v, nil
		}
	case int64:
		return strconv.FormatInt(v, 10), nil
	case int:
		return strconv.Itoa(v), nil
	case float64, bool, []any, map[string]any:
		b, err := json.Marshal(v)
		return string(b), err
	}
	return "", errors.New("it has no value")
}

// extend sets an extension attribute of an event whose map is its own.
func extend(ev *bus.Event, name, value string) {
	if ev.Extensions == nil {
		ev.Extensions = map[string]string{}
	}
	ev.Extensions[name] = strings.ToValidUTF8(value, "\uFFFD")
}
