package driver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// merge puts the settings of a driver over those of its type.
func merge(typ, own specs.Settings) specs.Settings {
	all := make(specs.Settings, len(typ)+len(own))
	maps.Copy(all, typ)
	maps.Copy(all, own)
	return all
}

// flags are the arguments for settings, in the order of their names.
func flags(set specs.Settings) []string {
	out := make([]string, 0, len(set))
	for _, key := range slices.Sorted(maps.Keys(set)) {
		flag := "--" + key
		if v := set[key]; v != "" {
			flag += "=" + v
		}
		out = append(out, flag)
	}
	return out
}

// checkSettings holds the settings of a driver, those of its type included,
// against the type's schema.
func checkSettings(p *program, c *Config, ck *specs.Checker) {
	if !p.Schema.Set {
		return
	}
	schema, err := compileSchema(p.Schema.Root)
	if err != nil {
		ck.Errorf("type", specs.CodeInvalidValue, "correct it there", "the schema of the DriverType %s is not valid: %v", c.Type, err)
		return
	}
	set := merge(p.Set, c.Set)
	delete(set, endpointSetting) // ours
	for _, w := range violations(schema, set) {
		field, hint := "set", ""
		if w.key != "" {
			field += "." + w.key
			if _, own := c.Set[w.key]; !own {
				field, hint = "set", "it is set in the DriverType "+c.Type
			}
		}
		text := w.text
		if w.key != "" {
			text = fmt.Sprintf("setting %s: %s", w.key, text)
		}
		ck.Errorf(field, specs.CodeInvalidValue, hint, "%s, says the schema of the DriverType %s", text, c.Type)
	}
}

type noLoader struct{}

// Load refuses: validation reads nothing but spec files.
func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s is not read, put it below $defs", url)
}

func compileSchema(root any) (*jsonschema.Schema, error) {
	// Through JSON, because of the numbers.
	b, err := json.Marshal(root)
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	const place = "schema.json"
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(noLoader{})
	if err := c.AddResource(place, doc); err != nil {
		return nil, err
	}
	s, err := c.Compile(place)
	if wrong, ok := errors.AsType[*jsonschema.SchemaValidationError](err); ok {
		if v, ok := errors.AsType[*jsonschema.ValidationError](wrong.Err); ok {
			list := leaves(v)
			return nil, fmt.Errorf("at /%s: %s", strings.Join(list[0].InstanceLocation, "/"), say(list[0]))
		}
	}
	return s, err
}

// violation is one thing wrong with the settings; key is "" when it is not
// about a single one. typed is true when a value of another type may be right.
type violation struct {
	key, text string
	typed     bool
}

// violations validates settings. They are text, but a schema speaks of
// numbers and booleans too: text that can be read as one is, unless only the
// text is valid. A key without a value is true.
func violations(schema *jsonschema.Schema, set specs.Settings) []violation {
	doc := make(map[string]any, len(set))
	for key, text := range set {
		doc[key] = typed(text)
	}
	found := validate(schema, doc)
	for key, text := range set {
		retyped := slices.ContainsFunc(found, func(v violation) bool { return v.key == key && v.typed })
		if _, same := doc[key].(string); same || !retyped {
			continue
		}
		read := doc[key]
		doc[key] = text
		again := validate(schema, doc)
		if slices.ContainsFunc(again, func(v violation) bool { return v.key == key }) {
			doc[key] = read
		} else {
			found = again
		}
	}
	return found
}

// typed reads the text of a setting as a number or boolean where it is one.
func typed(text string) any {
	switch text {
	case "", "true":
		return true
	case "false":
		return false
	}
	if c := text[0]; (c == '-' || c >= '0' && c <= '9') && bus.ValidJSON([]byte(text)) {
		return json.Number(text)
	}
	return text
}

func validate(schema *jsonschema.Schema, doc map[string]any) []violation {
	wrong, ok := errors.AsType[*jsonschema.ValidationError](schema.Validate(doc))
	if !ok {
		return nil
	}
	var out []violation
	for _, leaf := range leaves(wrong) {
		var keys []string
		text := say(leaf)
		if len(leaf.InstanceLocation) > 0 {
			keys = leaf.InstanceLocation[:1]
		} else if more, ok := leaf.ErrorKind.(*kind.AdditionalProperties); ok {
			keys, text = more.Properties, "is not known"
		}
		if keys == nil {
			keys = []string{""}
		}
		typed := false
		switch leaf.ErrorKind.(type) {
		case *kind.Type, *kind.Enum, *kind.Const:
			typed = true
		}
		for _, key := range keys {
			out = append(out, violation{key, text, typed})
		}
	}
	slices.SortFunc(out, func(a, b violation) int {
		return strings.Compare(a.key+"\x00"+a.text, b.key+"\x00"+b.text)
	})
	return slices.Compact(out)
}

// leaves are the errors that have no more exact ones below them.
func leaves(e *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return []*jsonschema.ValidationError{e}
	}
	var out []*jsonschema.ValidationError
	for _, c := range e.Causes {
		out = append(out, leaves(c)...)
	}
	return out
}

func say(e *jsonschema.ValidationError) string {
	return strings.ReplaceAll(e.ErrorKind.LocalizedString(message.NewPrinter(language.English)), "'", "")
}
