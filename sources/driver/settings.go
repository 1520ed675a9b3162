package driver

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/jsonschema"
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
	schema, err := jsonschema.Compile(p.Schema.Root)
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
	var out []violation
	for _, v := range schema.Validate(doc) {
		keys, text := []string{""}, v.Text
		if len(v.Path) > 0 {
			keys = v.Path[:1]
		} else if v.Unknown != nil {
			keys, text = v.Unknown, "is not known"
		}
		for _, key := range keys {
			out = append(out, violation{key, text, v.Typed})
		}
	}
	slices.SortFunc(out, func(a, b violation) int {
		return strings.Compare(a.key+"\x00"+a.text, b.key+"\x00"+b.text)
	})
	return slices.Compact(out)
}
