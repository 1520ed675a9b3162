package specs

import (
	"reflect"
	"slices"
	"strings"
)

// Option is one key of a config, as a reference shows it.
type Option struct {
	// Path is the key with those above it: "tls.ca", "mounts[].host".
	Path string `json:"path"`
	// Type is the type in words: "duration", "list of text", "object".
	Type string `json:"type"`
	// Enum lists the allowed values; Min and Max are as in a spec.
	Enum     []string `json:"enum,omitempty"`
	Min      string   `json:"min,omitempty"`
	Max      string   `json:"max,omitempty"`
	Required bool     `json:"required,omitempty"`
	Doc      string   `json:"doc"`
	Example  string   `json:"example,omitempty"`
}

// Options lists the keys of a config, in the order of its struct and nested
// ones after those they are in. config is a pointer to a struct as described at
// [Type]. The fields named in flat are not followed into.
func Options(config any, flat ...string) []Option {
	return options(nil, reflect.TypeOf(config).Elem(), "", flat)
}

func options(out []Option, t reflect.Type, prefix string, flat []string) []Option {
	for f := range t.Fields() {
		name, how, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if how == "inline" {
			out = options(out, f.Type, prefix, flat)
			continue
		}
		if name == "-" || name == "" {
			continue
		}
		o := Option{
			Path: prefix + name, Type: typeName(f.Type), Min: f.Tag.Get("min"), Max: f.Tag.Get("max"),
			Required: f.Tag.Get("required") == "true", Doc: f.Tag.Get("doc"), Example: f.Tag.Get("example"),
		}
		if e := f.Tag.Get("enum"); e != "" {
			o.Enum = strings.Split(e, ",")
		}
		out = append(out, o)
		if slices.Contains(flat, f.Name) {
			continue
		}
		switch e, list := nested(f.Type); {
		case e == nil:
		case list:
			out = options(out, e, o.Path+"[].", nil)
		default:
			out = options(out, e, o.Path+".", nil)
		}
	}
	return out
}

// nested is the struct below a field that has keys of its own, or nil.
func nested(t reflect.Type) (e reflect.Type, list bool) {
	for {
		switch t.Kind() {
		case reflect.Slice:
			t, list = t.Elem(), true
			continue
		case reflect.Pointer:
			t = t.Elem()
			continue
		case reflect.Struct:
			if typeName(t) == "object" {
				return t, list
			}
		}
		return nil, false
	}
}

// typeName is the type of a field in words.
func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Duration]():
		return "duration"
	case reflect.TypeFor[Size]():
		return "size"
	case reflect.TypeFor[Expr]():
		return "expression"
	case reflect.TypeFor[Text]():
		return "template text"
	case reflect.TypeFor[Template]():
		return "template"
	case reflect.TypeFor[Value]():
		return "any value"
	case reflect.TypeFor[Settings]():
		return "map of text"
	case reflect.TypeFor[SecretRef]():
		return "{name, key} of a Secret"
	case reflect.TypeFor[TextOrSecret]():
		return "template text or secret"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Map:
		return "map of " + typeName(t.Elem())
	case reflect.Struct:
		return "object"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "boolean"
	case reflect.Float32, reflect.Float64:
		return "number"
	}
	return "integer"
}
