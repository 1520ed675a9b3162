package specs

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"

	"gopkg.in/yaml.v3"
)

// object is one JSON object of the schema; encoding/json sorts its keys.
type object = map[string]any

// Schema returns the JSON Schema (2020-12) of one document of any kind, with
// the types' configs in it, for completion and validation in editors. It is
// an error when a config has a field of a type that cannot be decoded or
// without a doc text, so that a test of it is also a check of the types.
func Schema(t Types) ([]byte, error) {
	b := schemaBuilder{table: typeTable{}, defs: commonDefs()}
	specs := object{
		string(KindEventSource): b.eventSource(t.Sources),
		string(KindSensor):      b.structure(reflect.ValueOf(&Sensor{}).Elem(), "Sensor", t.Functions),
		string(KindFunction):    b.structure(reflect.ValueOf(&Function{}).Elem(), "Function", t.Functions),
		string(KindSecret):      b.structure(reflect.ValueOf(&Secret{}).Elem(), "Secret", nil),

		string(KindSubscription): b.structure(reflect.ValueOf(&Subscription{}).Elem(), "Subscription", t.Functions),
		string(KindEndpoint):     b.structure(reflect.ValueOf(&Endpoint{MaxBody: DefaultMaxBody, MaxInFlight: DefaultMaxInFlight}).Elem(), "Endpoint", nil),
		string(KindDriverType):   b.structure(reflect.ValueOf(&DriverType{}).Elem(), "DriverType", nil),
	}
	meta := b.structure(reflect.ValueOf(&Metadata{}).Elem(), "metadata", nil)
	meta["required"] = []string{"name"}
	meta["properties"].(object)["name"] = object{"$ref": "#/$defs/Name", "description": "Name of the resource, unique within its kind."}
	b.defs["Metadata"] = meta
	var cases []any
	for _, kind := range kinds {
		b.defs[kind] = specs[kind]
		cases = append(cases, object{
			"if":   object{"properties": object{"kind": object{"const": kind}}, "required": []string{"kind"}},
			"then": object{"properties": object{"spec": ref(kind)}},
		})
	}
	if len(b.problems) > 0 {
		return nil, errors.Join(b.problems...)
	}
	out, err := json.MarshalIndent(object{
		"$schema":     "https://json-schema.org/draft/2020-12/schema",
		"title":       "engine resource",
		"description": "One document of a spec file.",
		"type":        "object",
		"required":    []string{"apiVersion", "kind", "metadata", "spec"},
		"properties": object{
			"apiVersion": object{"const": APIVersion, "description": "Version of the spec language."},
			"kind":       object{"enum": kinds, "description": "Kind of the resource."},
			"metadata":   ref("Metadata"),
			"spec":       object{"type": "object", "description": "What the resource is; depends on kind."},
		},
		"additionalProperties": false,
		"allOf":                cases,
		"$defs":                b.defs,
	}, "", "  ")
	return append(out, '\n'), err
}

func ref(def string) object { return object{"$ref": "#/$defs/" + def} }

// scalarTypes are what a text field takes: YAML may read text as another type,
// but its text is kept.
func scalarTypes() []string { return []string{"string", "number", "boolean"} }

func commonDefs() object {
	return object{
		"Name": object{
			"type": "string", "pattern": dnsLabel.String(),
			"description": "A DNS label: lower-case letters, digits and -, at most 63.",
		},
		"Duration": object{
			"type": []string{"string", "integer"}, "pattern": durationPattern, "minimum": 0, "maximum": 0,
			"description": "A length of time: 500ms, 10s, 5m, 2h, 7d, 1h30m.",
		},
		"Size": object{
			"type": []string{"string", "integer"}, "pattern": sizePattern, "minimum": 0,
			"description": "A number of bytes: 512, 64KiB, 1MiB, 10GB.",
		},
		"Expression": object{"type": scalarTypes(), "minLength": 1, "description": "An expression, without ${ }."},
		"Text":       object{"type": scalarTypes(), "description": "Template: text that may contain ${ expression }."},
		"Template":   object{"description": "Template: a value of any shape whose strings may contain ${ expression }."},
		"Value":      object{"description": "A value of any shape."},
		"Settings": object{
			"description": "Settings of a driver: plain values, passed as --key=value; a key without a value is a bare flag.",
			"type":        "object", "propertyNames": object{"pattern": flagName.String()},
			"additionalProperties": object{"type": append(scalarTypes(), "null")},
		},
		"SecretRef": object{
			"type": "object", "description": "One value of a Secret.", "required": []string{"name", "key"},
			"properties": object{
				"name": object{"$ref": "#/$defs/Name", "description": "Name of the Secret."},
				"key":  object{"type": scalarTypes(), "description": "Key within the Secret."},
			},
			"additionalProperties": false,
		},
		"TextOrSecret": object{
			"description": "Template: text that may contain ${ expression }, or a reference to a secret value.",
			"oneOf": []any{
				object{"type": scalarTypes()},
				object{
					"type": "object", "required": []string{"secret"},
					"properties": object{
						"secret": object{"$ref": "#/$defs/SecretRef", "description": "Reference to the value in a Secret."},
						"prefix": object{"type": scalarTypes(), "description": "Text before the secret value."},
					},
					"additionalProperties": false,
				},
			},
		},
	}
}

type schemaBuilder struct {
	table    typeTable
	defs     object
	problems []error
	// within are the struct types being described, to find recursion.
	within []reflect.Type
}

func (b *schemaBuilder) problem(path, format string, args ...any) {
	b.problems = append(b.problems, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
}

func (b *schemaBuilder) eventSource(types []Type) object {
	props := object{}
	intake := b.structure(reflect.ValueOf(&Intake{}).Elem(), "intake", nil)["properties"].(object)
	for _, t := range types {
		def := "source-" + t.Name
		own := b.config(t, def)
		keys := own["properties"].(object)
		for name, p := range intake {
			if keys[name] == nil {
				keys[name] = p
			}
		}
		b.defs[def] = own
		props[t.Name] = object{
			"description": t.Doc, "type": "object", "minProperties": 1,
			"propertyNames": ref("Name"), "additionalProperties": ref(def),
		}
	}
	return object{
		"description": "Declares where events come from: source types, and the events of each by name.",
		"type":        "object", "minProperties": 1, "properties": props, "additionalProperties": false,
	}
}

// config describes the config of a type. One of which nothing is required may
// be left empty.
func (b *schemaBuilder) config(t Type, path string) object {
	s := b.structure(reflect.ValueOf(t.New()).Elem(), path, nil)
	s["description"] = t.Doc
	if t.Doc == "" {
		b.problem(path, "the type has no doc text")
	}
	if s["required"] == nil {
		s["type"] = []string{"object", "null"}
	}
	return s
}

// structure describes a struct; v holds the defaults. Function kinds are keys
// of triggers and functions.
func (b *schemaBuilder) structure(v reflect.Value, path string, functions []Type) object {
	for _, t := range b.within {
		if t == v.Type() {
			b.problem(path, "type %s contains itself", t)
			return object{}
		}
	}
	b.within = append(b.within, v.Type())
	defer func() { b.within = b.within[:len(b.within)-1] }()
	props := object{}
	var required []string
	for _, f := range b.table.info(v.Type()).fields {
		at := path + "." + f.name
		p := b.value(v.FieldByIndex(f.index), &f, at, functions)
		if f.doc == "" {
			b.problem(at, "the field has no doc text")
		}
		p["description"] = f.doc
		if f.example != "" {
			p["examples"] = []any{plain(f.example)}
		}
		if f.required {
			required = append(required, f.name)
		}
		props[f.name] = p
	}
	s := object{"type": "object", "properties": props, "additionalProperties": false}
	if required != nil {
		s["required"] = required
	}
	switch v.Type() {
	case triggerType, deadLetterType:
		b.functions(s, props, functions, "function")
	case reflect.TypeFor[Function]():
		b.functions(s, props, functions)
	}
	return s
}

// functions adds the function kinds, of which exactly one must be given, or
// one of the other keys.
func (b *schemaBuilder) functions(s, props object, types []Type, others ...string) {
	var choice []any
	for _, key := range others {
		choice = append(choice, object{"required": []string{key}})
	}
	for _, t := range types {
		def := "function-" + t.Name
		if b.defs[def] == nil {
			b.defs[def] = b.config(t, def)
		}
		props[t.Name] = ref(def)
		choice = append(choice, object{"required": []string{t.Name}})
	}
	if choice != nil {
		s["oneOf"] = choice
	}
}

// plain reads the text of a tag as a YAML value.
func plain(text string) any {
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return text
	}
	switch v.(type) {
	case string, int, float64, bool, []any, map[string]any:
		return v
	}
	return text
}

func (b *schemaBuilder) value(v reflect.Value, f *field, path string, functions []Type) object {
	switch v.Type() {
	case durationType:
		s := ref("Duration")
		if d := v.Interface().(Duration); d != 0 {
			s["default"] = d.short()
		}
		return s
	case sizeType:
		s := ref("Size")
		if n := v.Interface().(Size); n != 0 {
			s["default"] = n.String()
		}
		return s
	case exprType:
		return ref("Expression")
	case textType:
		return ref("Text")
	case templateType:
		return ref("Template")
	case valueType:
		return ref("Value")
	case secretRefType:
		return ref("SecretRef")
	case textOrSecretType:
		return ref("TextOrSecret")
	case settingsType:
		return ref("Settings")
	case deadLetterType:
		if b.defs["DeadLetter"] == nil {
			b.defs["DeadLetter"] = b.structure(v, "DeadLetter", functions)
		}
		return ref("DeadLetter")
	case fromType:
		return object{"anyOf": []any{
			object{"enum": []string{string(FromNow), string(FromEarliest)}},
			object{"type": "string", "format": "date-time"},
		}}
	}
	switch v.Kind() {
	case reflect.Pointer:
		e := reflect.New(v.Type().Elem()).Elem()
		if !v.IsNil() {
			e = v.Elem()
		}
		return b.value(e, f, path, functions)
	case reflect.Struct:
		s := b.structure(v, path, functions)
		if f != nil && f.short != "" {
			only := b.table.info(v.Type()).field(f.short)
			return object{"anyOf": []any{b.value(v.FieldByIndex(only.index), only, join(path, only.name), functions), s}}
		}
		return s
	case reflect.Slice:
		s := object{"type": "array", "items": b.value(reflect.New(v.Type().Elem()).Elem(), elem(f), path+"[]", functions)}
		if f != nil && f.required {
			s["minItems"] = 1
		}
		return s
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String {
			break
		}
		return object{"type": "object", "additionalProperties": b.value(reflect.New(v.Type().Elem()).Elem(), elem(f), path+".*", functions)}
	case reflect.String:
		s := object{"type": scalarTypes()}
		if f != nil && f.enum != nil {
			s = object{"enum": f.enum}
		} else if f != nil && f.required {
			s["minLength"] = 1
		}
		if v.String() != "" {
			s["default"] = v.String()
		}
		return s
	case reflect.Bool:
		s := object{"type": "boolean"}
		if v.Bool() {
			s["default"] = true
		}
		return s
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		s := object{"type": "integer"}
		if v.CanUint() {
			s["minimum"] = 0
		}
		return number(s, v, f)
	case reflect.Float32, reflect.Float64:
		return number(object{"type": "number"}, v, f)
	}
	b.problem(path, "fields of type %s cannot be decoded", v.Type())
	return object{}
}

// number adds default and limits.
func number(s object, v reflect.Value, f *field) object {
	if !v.IsZero() {
		s["default"] = v.Interface()
	}
	if f == nil {
		return s
	}
	if n, err := strconv.ParseFloat(f.min, 64); err == nil {
		s["minimum"] = n
	}
	if n, err := strconv.ParseFloat(f.max, 64); err == nil {
		s["maximum"] = n
	}
	return s
}
