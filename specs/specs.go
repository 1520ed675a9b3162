// Package specs owns the language of the YAML files: what the resources are,
// how text becomes resources, what is wrong with it and where, how a resource
// is hashed, and the JSON Schema for editors. It is pure data: it reads files
// it is pointed at and nothing else, holds no connection, starts no
// goroutine, and imports nothing of this module. Which source types and
// function kinds exist reaches it as a value, [Types].
package specs

import (
	"fmt"
	"iter"
	"strconv"
	"time"
)

// APIVersion is the apiVersion of every document.
const APIVersion = "engine/v1"

// Kind is the kind of a resource.
type Kind string

// The kinds of resources.
const (
	KindEventSource  Kind = "EventSource"
	KindSensor       Kind = "Sensor"
	KindFunction     Kind = "Function"
	KindSubscription Kind = "Subscription"
	KindEndpoint     Kind = "Endpoint"
	KindDriverType   Kind = "DriverType"
	KindSecret       Kind = "Secret"
)

// Kinds returns all kinds, in the order in which people are shown them.
func Kinds() []Kind {
	return []Kind{KindEventSource, KindSensor, KindFunction, KindSubscription, KindEndpoint, KindDriverType, KindSecret}
}

// Ref names a resource.
type Ref struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
}

// String is "Kind/name".
func (r Ref) String() string { return string(r.Kind) + "/" + r.Name }

// Pos is a place in a spec file; lines and columns count from 1, columns in
// characters. The zero Pos means "nowhere".
type Pos struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col"`
}

// String is "file:line:col".
func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col) }

// Metadata is the metadata of a resource.
type Metadata struct {
	Name        string            `yaml:"name" json:"name" doc:"Name of the resource, a DNS label, unique within its kind."`
	Labels      map[string]string `yaml:"labels" json:"labels,omitempty" doc:"Free labels for selecting and grouping."`
	Annotations map[string]string `yaml:"annotations" json:"annotations,omitempty" doc:"Free notes for people and tools."`
}

// Resource is one document of any kind. It is not changed after it was loaded.
type Resource struct {
	Kind     Kind
	Metadata Metadata
	// Pos is the place of the document, NamePos that of metadata.name.
	Pos, NamePos Pos
	// Hash is a hash of the canonical form of the document (key order,
	// comments and formatting do not count), hex.
	Hash string
	// Source is the document's own text, whole lines beginning with that of
	// Pos, so that it can be stored and loaded again by [Loader.LoadSource].
	Source string
	// Spec is *EventSource, *Sensor, *Function, *Subscription, *Endpoint,
	// *DriverType or *Secret.
	Spec any
	// Uses are the resources this one references, sorted.
	Uses []Ref

	uses []use
}

// Ref returns the kind and name.
func (r *Resource) Ref() Ref { return Ref{r.Kind, r.Metadata.Name} }

// Set is a set of resources, by reference. It is not changed after it was made.
type Set struct {
	Resources map[Ref]*Resource
}

// Types is the table of source types and function kinds that exist. It is a
// value handed in by the program, so that a test can hand in another.
type Types struct {
	Sources   []Type
	Functions []Type
}

// Type is one source type or function kind.
type Type struct {
	// Name is the key in a spec, for example "webhook".
	Name string
	// Doc is one sentence for reference and schema.
	Doc string
	// New returns a pointer to a new config struct holding the defaults. The
	// struct's fields have `yaml` names and `doc` texts; `required:"true"`
	// marks what must be there and not empty, `enum:"a,b"` what is allowed,
	// `min` and `max` (as in a spec, for example "1ms") the limits of numbers,
	// durations and sizes; `example` shows; `ref:"Secret"` on text or a list of
	// it says that it names resources of that kind; `short:"mode"` on a struct
	// lets a scalar stand for the struct with that key alone. A field may be any of: bool, string, integers, floats, [Duration],
	// [Size], [Expr], [Text], [Template], [SecretRef], [Value], [Settings], pointers,
	// slices, maps with string keys and structs of these; an embedded struct
	// tagged `yaml:",inline"` is flattened; a field `Pos Pos` takes the place
	// of its struct. A config that has the method Validate(*Checker) is asked
	// for what the types cannot say, once everything else about it is right.
	New func() any
}

// Lookup finds the type by name, or nil.
func lookup(types []Type, name string) *Type {
	for i := range types {
		if types[i].Name == name {
			return &types[i]
		}
	}
	return nil
}

// Source finds a source type by name, or nil.
func (t Types) Source(name string) *Type { return lookup(t.Sources, name) }

// Function finds a function kind by name, or nil.
func (t Types) Function(name string) *Type { return lookup(t.Functions, name) }

// Duration is a length of time written with a unit: 500ms, 10s, 5m, 2h, 7d.
type Duration time.Duration

// D is the duration for package time.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String is the form of package time.
func (d Duration) String() string { return time.Duration(d).String() }

// Size is a number of bytes: 512, 64KiB, 1MiB, 10GB.
type Size int64

// Expr is the source of an expression and its place.
type Expr struct {
	Source string
	Pos    TextPos
}

// IsZero reports whether no expression was given.
func (e Expr) IsZero() bool { return e.Source == "" }

// TextPos maps an offset in a scalar's text to a place in the file.
type TextPos struct {
	Pos
	// Indent is the column in which the lines after the first begin, 0 when
	// the mapping of later lines is not known (then they map to Pos).
	Indent int
	// Fixed is true when the text is not in the file as it is, because it is
	// folded or has escapes: then every place in it maps to Pos.
	Fixed bool
}

// At returns the place of line and column (both from 1) of the text.
func (p TextPos) At(line, col int) Pos {
	if p.Fixed {
		return p.Pos
	}
	if line <= 1 {
		return Pos{p.File, p.Line, p.Col + max(col, 1) - 1}
	}
	if p.Indent == 0 {
		return p.Pos
	}
	return Pos{p.File, p.Line + line - 1, p.Indent + max(col, 1) - 1}
}

// Text is a string that may contain ${ expr }, and its place.
type Text struct {
	Value string
	Pos   TextPos
	// Path is the path of the field in its document, for example
	// "spec.triggers[0].http.url". It is unique within the document and the
	// key under which a rendered value travels.
	Path string
}

// Template is a value of any shape whose strings may contain ${ expr }.
type Template struct {
	// Root is nil, bool, int64, float64, Text, []any or map[string]any, the
	// last two of the same. Every string is a Text.
	Root any
	Pos  Pos
	Path string
	// Set is true when the field was given, even as null.
	Set bool
}

// Value is plain data of any shape: nil, bool, int64, float64, string, []any,
// map[string]any. It has no templates.
type Value struct {
	Root any
	Set  bool
}

// SecretRef names one value of a Secret.
type SecretRef struct {
	Name string `yaml:"name" required:"true" doc:"Name of the Secret."`
	Key  string `yaml:"key" required:"true" doc:"Key within the Secret."`
	Pos  Pos    `yaml:"-"`
}

// TextOrSecret is a header or variable: text with templates, or
// `{secret: {name, key}, prefix: "Bearer "}`.
type TextOrSecret struct {
	Text   Text
	Secret *SecretRef
	Prefix string
}

// EventSource declares where events come from.
type EventSource struct {
	// Events are the declared events, sorted by name; names are unique over
	// all types of one EventSource.
	Events []SourceEvent
}

// SourceEvent is one event of an EventSource.
type SourceEvent struct {
	// Type is the source type, Name the event's name.
	Type, Name string
	// Pos is the place of the event's key.
	Pos Pos
	// Config is what the type's New returned, filled in.
	Config any
	// Intake says which of the incoming events are stored, and as what.
	Intake Intake
	// Places are those of the config and its fields, by their path below it ("" for
	// the config itself), for checks that come later.
	Places map[string]Pos
	// Hash covers Type, Name and the canonical config, intake included.
	Hash string
	// Uses are the resources the config references, sorted.
	Uses []Ref
}

// DriverType is a program that drivers of this type run: see the source type driver.
type DriverType struct {
	Command     []string `yaml:"command" doc:"Program and its first arguments; a program with a / in it is relative to this file, another is looked up in PATH." example:"[python3, ticker.py]"`
	Path        string   `yaml:"path" doc:"The program alone, relative to this file; instead of command." example:"bin/ticker"`
	Expose      bool     `yaml:"expose" doc:"Whether the driver listens for requests on the port in its variable PORT, which the engine forwards from its own listener."`
	SecretFlags bool     `yaml:"secretFlags" doc:"Whether secrets are passed as flags, too, where every local user can read them."`
	Set         Settings `yaml:"set" doc:"Settings for all drivers of the type, passed as --key=value; a driver's own win." example:"{seconds: 60}"`
	Schema      Value    `yaml:"schema" doc:"JSON Schema of the settings, against which drivers are checked."`
}

// Settings are the settings of a driver by key, with their text as it is in the
// file; "" for a key without a value.
type Settings map[string]string

// Subscription calls a function for every event of a type. It is short for a
// Sensor with one dependency and one trigger; see [Subscription.Sensor].
type Subscription struct {
	EventType string   `yaml:"eventType" required:"true" doc:"CloudEvents type of the events, or a glob." example:"ticker.tick"`
	Source    string   `yaml:"source" doc:"Name of the EventSource, or a glob; default: any."`
	When      Expr     `yaml:"when" doc:"Expression over the event that must be true." example:"data.total > 100"`
	Function  string   `yaml:"function" required:"true" doc:"Name of the Function to call."`
	Input     Template `yaml:"input" doc:"What the function gets instead of the event's data; strings may contain ${ expr }, in which event is the event."`
	Secrets   []string `yaml:"secrets" ref:"Secret" doc:"Names of Secrets whose values are added to those of the function in this call." example:"[slack]"`
	From      From     `yaml:"from" doc:"With which event it begins when it is new: now (default), earliest, or the first at a time or after it." example:"2026-03-01T00:00:00Z"`
	Spread    bool     `yaml:"spread" doc:"Spread its jobs over all partitions, so that several replicas can share them; its limits are then those of each replica. Not with order: key."`
	Delivery  `yaml:",inline"`

	DeadLetter *DeadLetter `yaml:"deadLetter" doc:"What is called for each call that becomes a dead letter; as that of a trigger."`

	functionPos, pos Pos
}

// SubscriptionPrefix begins the name of the Sensor a Subscription stands for;
// no Sensor written as such has a dot in its name.
const SubscriptionPrefix = "subscription."

// The names within the Sensor of a Subscription.
const (
	SubscriptionDependency = "event"
	SubscriptionTrigger    = "call"
)

// Sensor returns the Sensor the Subscription stands for: one dependency,
// `event`, and one trigger, `call`.
func (s *Subscription) Sensor() *Sensor {
	return &Sensor{
		Dependencies: []Dependency{{Name: SubscriptionDependency, Source: s.Source, Type: s.EventType, When: s.When, Pos: s.pos}},
		From:         s.From,
		Triggers: []Trigger{{
			Name: SubscriptionTrigger, Function: s.Function, FunctionPos: s.functionPos, Input: s.Input, Secrets: s.Secrets, Spread: s.Spread, Delivery: s.Delivery, DeadLetter: s.DeadLetter, Pos: s.pos,
		}},
	}
}

// Sensor is the Sensor a resource is or stands for, and the name it runs
// under; nil for other kinds.
func (r *Resource) Sensor() (name string, s *Sensor) {
	switch spec := r.Spec.(type) {
	case *Sensor:
		return r.Metadata.Name, spec
	case *Subscription:
		return SubscriptionPrefix + r.Metadata.Name, spec.Sensor()
	}
	return "", nil
}

// Secret says where secret values come from; it never holds one.
type Secret struct {
	Env   map[string]string `yaml:"env" doc:"Keys and the environment variables that hold their values."`
	Files map[string]string `yaml:"files" doc:"Keys and the files that hold their values, relative to this file; one trailing newline is removed."`
}

// Pick says which of several waiting events of a dependency is used.
type Pick string

// The picks.
const (
	PickLatest Pick = "latest"
	PickFirst  Pick = "first"
	PickAll    Pick = "all"
)

// From says with which event a sensor begins that comes newly into force: one of
// the constants, or a time in the form of RFC 3339. "" is [FromNow].
type From string

// The beginnings that are no times.
const (
	// FromNow is the next event.
	FromNow From = "now"
	// FromEarliest is the first event stored.
	FromEarliest From = "earliest"
)

// Time is the time whose first event a sensor begins with, the one stored at it
// or next; ok is false when it is no time.
func (f From) Time() (at time.Time, ok bool) {
	at, err := time.Parse(time.RFC3339, string(f))
	return at, err == nil
}

// Sensor declares which events, under which condition, fire which triggers.
type Sensor struct {
	Dependencies []Dependency `yaml:"dependencies" required:"true" doc:"The events this sensor waits for."`
	Correlate    Expr         `yaml:"correlate" doc:"Expression whose value pairs events: only events with the same value are combined." example:"data.orderId"`
	Within       Duration     `yaml:"within" min:"1ms" doc:"How long an event waits for the others." example:"10m"`
	Reset        *Reset       `yaml:"reset" doc:"When the events that wait are given up, whatever they wait for."`
	Condition    Expr         `yaml:"condition" doc:"Expression over dependency names; default: all of them." example:"order && payment"`
	From         From         `yaml:"from" doc:"With which event it begins when it is new: now (default), earliest, or the first at a time or after it." example:"2026-03-01T00:00:00Z"`
	Triggers     []Trigger    `yaml:"triggers" required:"true" doc:"What happens when the condition holds."`
	Limits       *StateLimits `yaml:"limits" doc:"How much the sensor keeps at most."`
}

// StateLimits bound what one sensor keeps; 0 is the default.
type StateLimits struct {
	Keys   int  `yaml:"keys" min:"1" max:"100000000" doc:"Most correlation keys with state; default 1000000."`
	Events int  `yaml:"events" min:"1" max:"10000" doc:"Most events that wait per correlation key, dependency and trigger; default 10000."`
	Bytes  Size `yaml:"bytes" min:"1KiB" doc:"Most bytes of state, payloads not counted; default 256MiB." example:"64MiB"`
}

// Reset says at which points in time a sensor forgets the events that wait.
type Reset struct {
	Cron     string `yaml:"cron" required:"true" doc:"Cron schedule: minute, hour, day of month, month, day of week; a sixth field in front is the second. Also @hourly, @daily, @weekly, @monthly, @yearly and @every 90s." example:"0 0 * * *"`
	Timezone string `yaml:"timezone" doc:"IANA name of the time zone of the schedule; default UTC." example:"Europe/Amsterdam"`
	// CronPos and TimezonePos are the places of the values.
	CronPos     Pos `yaml:"-"`
	TimezonePos Pos `yaml:"-"`
}

// Dependency selects events.
type Dependency struct {
	Name      string    `yaml:"name" required:"true" doc:"Name by which expressions know it, a DNS label; '-' is written '_' in expressions."`
	Source    string    `yaml:"source" doc:"Name of the EventSource, or a glob." example:"shop"`
	Event     string    `yaml:"event" doc:"Name of the event, or a glob." example:"orders"`
	Type      string    `yaml:"type" doc:"CloudEvents type, or a glob." example:"com.example.*"`
	Subject   string    `yaml:"subject" doc:"CloudEvents subject, or a glob."`
	Function  string    `yaml:"function" doc:"Name of a Function, SENSOR.TRIGGER for one that is written inline, or a glob: the event is the result of its calls. Instead of source, event and type." example:"build"`
	Outcome   Outcome   `yaml:"outcome" enum:"succeeded,failed" doc:"How the calls of the function ended; default: either way."`
	Transform Transform `yaml:"transform" short:"expr" doc:"Expression over the event that gives the data this sensor sees instead of its own, or {jq: program}; before when." example:"data.order"`
	When      Expr      `yaml:"when" doc:"Expression over the event that must be true." example:"data.total > 100"`
	Pick      Pick      `yaml:"pick" enum:"latest,first,all" doc:"Which of several waiting events is used; default latest."`
	Count     int       `yaml:"count" min:"1" max:"10000" doc:"Number of events that must wait before the dependency has arrived; expressions then see a list."`
	Distinct  Expr      `yaml:"distinct" doc:"Expression over the event: of waiting events with the same value only one counts." example:"data.host"`
	Absent    *Absent   `yaml:"absent" doc:"Ask whether the event stays away, as absent(name), instead of waiting for it."`
	Pos       Pos       `yaml:"-"`
}

// Outcome is how a call ended for good.
type Outcome string

// The outcomes.
const (
	OutcomeSucceeded Outcome = "succeeded"
	OutcomeFailed    Outcome = "failed"
)

// Transform gives the data a sensor sees instead of an event's own: one of an
// expression and a jq program.
type Transform struct {
	Expr Expr `yaml:"expr" doc:"Expression over the event; transform: data.order is short for it." example:"data.order"`
	JQ   Expr `yaml:"jq" doc:"jq program whose input is the event as an object of its attributes, and which gives one value." example:"'.data | {id: .order.id}'"`
}

// IsZero reports whether no transform was given.
func (t Transform) IsZero() bool { return t.Expr.IsZero() && t.JQ.IsZero() }

// Absent says when the event of a dependency counts as absent.
type Absent struct {
	For   Duration `yaml:"for" required:"true" min:"1ms" doc:"How long the event must stay away." example:"5m"`
	After string   `yaml:"after" required:"true" doc:"Name of the dependency whose event begins the time."`
}

// Trigger calls a function when its condition holds.
type Trigger struct {
	Name      string    `yaml:"name" required:"true" doc:"Name of the trigger, a DNS label, unique in the sensor."`
	Condition Expr      `yaml:"condition" doc:"Condition of this trigger alone; default: the sensor's, and none with after or onFailure."`
	After     []string  `yaml:"after" doc:"Names of other triggers of this sensor that must succeed before: this one is a later step of their workflow." example:"[build]"`
	OnFailure []string  `yaml:"onFailure" doc:"Names of other triggers of this sensor of which one must fail, instead of after." example:"[build]"`
	Cooldown  Duration  `yaml:"cooldown" min:"1ms" doc:"Quiet time after a firing, per correlation key: what would fire within it is used up without a call." example:"5m"`
	Debounce  *Debounce `yaml:"debounce" doc:"Wait until the condition has not held again for a while, then fire once with the last events."`
	Batch     *Batch    `yaml:"batch" doc:"Gather what would fire and fire once with the list."`
	Foreach   *Foreach  `yaml:"foreach" doc:"Fire once for each item of a list."`
	// Function is the named function, "" when Inline is set.
	Function    string   `yaml:"function" doc:"Name of the Function to call; or give a kind inline, such as http, python or log."`
	FunctionPos Pos      `yaml:"-"`
	Inline      *Call    `yaml:"-"`
	Input       Template `yaml:"input" doc:"What the function gets instead of the event's data; strings may contain ${ expr }."`
	Secrets     []string `yaml:"secrets" ref:"Secret" doc:"Names of Secrets whose values are added to those of the function in this call." example:"[slack]"`
	Spread      bool     `yaml:"spread" doc:"Spread its jobs over all partitions, so that several replicas can share them; its limits are then those of each replica. Not with order: key."`
	Delivery    `yaml:",inline"`
	DeadLetter  *DeadLetter `yaml:"deadLetter" doc:"What is called for each job of this trigger that becomes a dead letter: function or a kind inline, input, secrets, and how it is called. Without input it gets what the result of the job would tell."`
	Pos         Pos         `yaml:"-"`
}

// DeadLetter says what is called for each job of a trigger that becomes a dead
// letter, and how.
type DeadLetter struct {
	// Function is the named function, "" when Inline is set.
	Function    string   `yaml:"function" doc:"Name of the Function to call; or give a kind inline, such as http, python or log."`
	FunctionPos Pos      `yaml:"-"`
	Inline      *Call    `yaml:"-"`
	Input       Template `yaml:"input" doc:"What the function gets instead of what the result of the job would tell; strings may contain ${ expr }, which sees what the templates of the trigger see, and triggers.NAME of the trigger."`
	Secrets     []string `yaml:"secrets" ref:"Secret" doc:"Names of Secrets whose values are added to those of the function in this call." example:"[slack]"`
	Spread      bool     `yaml:"spread" doc:"Spread its jobs over all partitions, so that several replicas can share them; its limits are then those of each replica. Not with order: key."`
	Delivery    `yaml:",inline"`
	Pos         Pos `yaml:"-"`
}

// DeadLetterSuffix ends the name of the trigger that the deadLetter of another
// one stands for; no trigger written as such has a dot in its name.
const DeadLetterSuffix = ".deadLetter"

// Handler is the trigger that the deadLetter of t stands for, nil without one.
// No event makes it fire: each dead letter of t does.
func (t *Trigger) Handler() *Trigger {
	d := t.DeadLetter
	if d == nil {
		return nil
	}
	return &Trigger{
		Name: t.Name + DeadLetterSuffix, Function: d.Function, FunctionPos: d.FunctionPos, Inline: d.Inline,
		Input: d.Input, Secrets: d.Secrets, Spread: d.Spread, Delivery: d.Delivery, Pos: d.Pos,
	}
}

// Calls yields everything a sensor calls, with its path in the document of a
// Sensor: the triggers, each followed by its [Trigger.Handler].
func (s *Sensor) Calls() iter.Seq2[string, *Trigger] {
	return func(yield func(string, *Trigger) bool) {
		for i := range s.Triggers {
			t := &s.Triggers[i]
			path := "spec.triggers[" + strconv.Itoa(i) + "]"
			if !yield(path, t) {
				return
			}
			if h := t.Handler(); h != nil && !yield(path+".deadLetter", h) {
				return
			}
		}
	}
}

// Debounce says how long a trigger waits for more of the same.
type Debounce struct {
	Quiet Duration `yaml:"quiet" required:"true" min:"1ms" doc:"How long the condition must not hold again before the trigger fires." example:"5s"`
	Max   Duration `yaml:"max" min:"1ms" doc:"Longest wait from the first time the condition held; default: as long as it takes." example:"1m"`
}

// DefaultBatchSize is the size of a batch that says only how long it waits.
const DefaultBatchSize = 1000

// Batch says how much a trigger gathers before it fires. One of the two is given.
type Batch struct {
	Size int      `yaml:"size" min:"1" max:"10000" doc:"Fire when this many are gathered; default 1000."`
	Wait Duration `yaml:"wait" min:"1ms" doc:"Fire this long after the first was gathered, with what there is; default: when size is reached." example:"10s"`
}

// DefaultForeachMax is the most items of a fan-out that does not say more.
const DefaultForeachMax = 1000

// Foreach fans one firing out over a list.
type Foreach struct {
	In  Expr `yaml:"in" required:"true" doc:"Expression over what the condition sees that gives the list; templates then know item and index." example:"order.data.lines"`
	Key Expr `yaml:"key" doc:"Expression over item and index that tells items apart, also when the list is in another order; default: index." example:"item.sku"`
	Max int  `yaml:"max" min:"1" max:"10000" doc:"Most items; a longer list is a dead letter; default 1000."`
}

// Call is a function kind with its config.
type Call struct {
	// Kind is the function kind, for example "http".
	Kind string
	// Config is what the kind's New returned, filled in.
	Config any
	// Pos is the place of the kind's key.
	Pos Pos
	// Places are those of the config and its fields, as in [SourceEvent].
	Places map[string]Pos
}

// Function declares something that triggers call by name.
type Function struct {
	Call     Call     `yaml:"-"`
	Input    *Shape   `yaml:"input" doc:"What the function takes; other input is refused before the call."`
	Output   *Shape   `yaml:"output" doc:"What the function gives; other output is a failure of the call."`
	Secrets  []string `yaml:"secrets" ref:"Secret" doc:"Names of Secrets, all of whose values the function gets; of two keys that are the same, the later Secret's wins." example:"[vcenter]"`
	Delivery `yaml:",inline"`
	// Places are those of input, output and secrets and everything in them, by
	// their path below spec.
	Places map[string]Pos `yaml:"-"`
}

// Shape says what the input or output of a function looks like.
type Shape struct {
	Schema Value `yaml:"schema" required:"true" doc:"JSON Schema, drafts 4 to 2020-12: inline, or the path of a JSON or YAML file, relative to this file." example:"{type: object, required: [name]}"`
}

// Delivery says how a function is called. A trigger's values win over its
// function's.
type Delivery struct {
	Timeout     Duration  `yaml:"timeout" min:"1ms" doc:"Longest time one call may take; default 30s." example:"10s"`
	Concurrency int       `yaml:"concurrency" min:"1" max:"10000" doc:"Most calls at the same time; default 16."`
	Retry       *Retry    `yaml:"retry" doc:"How failed calls are repeated."`
	RateLimit   *CallRate `yaml:"rateLimit" doc:"How many calls are made in a time. That of a Function bounds the calls of all who call it, that of a trigger its own; where both have one, both hold."`
	Breaker     *Breaker  `yaml:"breaker" doc:"Pause the trigger while its function fails; default: never."`
	Order       string    `yaml:"order" enum:"none,key" doc:"Order of calls: none (default), or key: those of one correlation key one after the other, as they fired."`
	Overflow    string    `yaml:"overflow" enum:"dlq,block" doc:"What happens with jobs beyond the parking limit: dlq (default) or block."`
}

// CallRate is a token bucket for calls.
type CallRate struct {
	Calls int      `yaml:"calls" required:"true" min:"1" doc:"Number of calls in a time." example:"10"`
	Per   Duration `yaml:"per" min:"1ms" doc:"The time, default 1s." example:"1m"`
	Burst int      `yaml:"burst" min:"1" doc:"How many may be made at once; default: calls."`
	By    string   `yaml:"by" enum:"all,key" doc:"Whose calls are counted together: all (default), or key: those of each correlation key, which has the rate for itself."`
}

// Breaker says when a trigger is paused, and how long.
type Breaker struct {
	Failures int      `yaml:"failures" min:"1" max:"10000" doc:"How many calls in a row must fail, in a way that may pass; default 5."`
	Wait     Duration `yaml:"wait" min:"1ms" doc:"Pause before the first probe, which is one call; it doubles with each probe that fails; default 30s." example:"10s"`
	Max      Duration `yaml:"max" min:"1ms" doc:"Longest pause; default 5m."`
}

// Retry is a retry policy: attempt n waits backoff·factor^(n-1), at most max,
// plus or minus jitter.
type Retry struct {
	Attempts int      `yaml:"attempts" min:"1" max:"1000" doc:"Number of all calls, the first included; default 5."`
	Backoff  Duration `yaml:"backoff" min:"1ms" doc:"Wait before the second call; default 1s."`
	Factor   float64  `yaml:"factor" min:"1" max:"100" doc:"Growth of the wait; default 2."`
	Max      Duration `yaml:"max" min:"1ms" doc:"Longest wait; default 5m."`
	Jitter   *float64 `yaml:"jitter" min:"0" max:"1" doc:"Random part of the wait, 0 to 1; default 0.1."`
}
