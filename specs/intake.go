package specs

import (
	"reflect"
	"regexp"
	"slices"
)

// Intake is what every event of an EventSource can say beside the keys of its
// type: which of the incoming events are stored, and as what. A key that the
// type has itself means what the type says.
type Intake struct {
	Filter    Expr            `yaml:"filter" doc:"Expression over the incoming event that must be true for it to be stored." example:"data.total > 100"`
	Dedup     Expr            `yaml:"dedup" doc:"Expression for the event's id: an id that came within the last ten minutes is not stored again." example:"data.orderId"`
	RateLimit *RateLimit      `yaml:"rateLimit" doc:"How many events are stored in a time; a producer that waits for an answer is refused with 429 beyond it, any other is read more slowly."`
	Type      Text            `yaml:"type" doc:"CloudEvents type of the stored event." example:"com.example.order.${ data.state }"`
	Subject   Text            `yaml:"subject" doc:"CloudEvents subject of the stored event." example:"${ data.orderId }"`
	Data      Template        `yaml:"data" doc:"Data of the stored event, as JSON, instead of what came in."`
	Labels    map[string]Text `yaml:"labels" doc:"Extension attributes added to the event; names are lower-case letters and digits, at most 20." example:"{team: payments}"`
}

// IsZero reports whether nothing was given.
func (i *Intake) IsZero() bool {
	return i.Filter.IsZero() && i.Dedup.IsZero() && i.RateLimit == nil && i.Type.Value == "" && i.Subject.Value == "" &&
		!i.Data.Set && len(i.Labels) == 0
}

// RateLimit is a token bucket.
type RateLimit struct {
	Events int      `yaml:"events" required:"true" min:"1" doc:"Number of events in a time." example:"100"`
	Per    Duration `yaml:"per" min:"1ms" doc:"The time, default 1s." example:"1m"`
	Burst  int      `yaml:"burst" min:"1" doc:"How many may come at once; default: events."`
}

var intakeType = reflect.TypeFor[Intake]()

// reservedExtensions are the attributes of CloudEvents itself, which no label
// may have as its name.
var reservedExtensions = []string{
	"id", "source", "specversion", "type", "datacontenttype", "dataschema", "subject", "time", "data",
}

var extensionName = regexp.MustCompile(`^[a-z0-9]{1,20}$`)

// intake checks what the types of the fields cannot say.
func (d *decoder) intake(n *node, in *Intake, path string) {
	labels := n.get("labels")
	if labels == nil || in.Labels == nil {
		return
	}
	for _, p := range labels.pairs {
		at := join(join(path, "labels"), p.key.value)
		switch {
		case !extensionName.MatchString(p.key.value):
			d.errorf(p.key, at, CodeInvalidName, "extension attributes have lower-case letters and digits, at most 20",
				"%s is not a valid name of an extension attribute", p.key.describe())
		case slices.Contains(reservedExtensions, p.key.value):
			d.errorf(p.key, at, CodeReservedName, "choose another name", "%q is an attribute of CloudEvents itself", p.key.value)
		}
	}
}
