// Package jsonschema owns JSON Schemas that users write: compiling them and
// telling in plain words what is wrong with them or with a value. Drafts 4 to
// 2020-12 are known; a schema that names none is read as 2020-12. It reads no
// files and no addresses, and must not know what the values are.
package jsonschema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	lib "github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// Schema is a compiled schema. It is safe for concurrent use.
type Schema struct{ schema *lib.Schema }

// Error says what is wrong with a schema itself, and where.
type Error struct {
	// Path leads to the place in the schema: keys and indices.
	Path []string
	Text string
}

// Error is the place and what is wrong there.
func (e *Error) Error() string {
	if len(e.Path) == 0 {
		return e.Text
	}
	return "at /" + strings.Join(e.Path, "/") + ": " + e.Text
}

type noLoader struct{}

// Load refuses: a schema is what its author wrote, not what an address answers.
func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s is not read, put it below $defs", url)
}

// Compile compiles a schema given as plain data. Formats are asserted. An
// [*Error] says where it is wrong, as far as that is known.
func Compile(root any) (*Schema, error) {
	// Through JSON, because of the numbers.
	b, err := json.Marshal(root)
	if err != nil {
		return nil, err
	}
	return Parse(b)
}

// Parse is [Compile] for a schema as JSON text.
func Parse(text []byte) (*Schema, error) {
	doc, err := lib.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	const place = "schema.json"
	c := lib.NewCompiler()
	c.DefaultDraft(lib.Draft2020)
	c.AssertFormat()
	c.UseLoader(noLoader{})
	if err := c.AddResource(place, doc); err != nil {
		return nil, err
	}
	s, err := c.Compile(place)
	if wrong, ok := errors.AsType[*lib.SchemaValidationError](err); ok {
		if v, ok := errors.AsType[*lib.ValidationError](wrong.Err); ok {
			leaf := leaves(v)[0]
			return nil, &Error{leaf.InstanceLocation, say(leaf)}
		}
	}
	if err != nil {
		return nil, err
	}
	return &Schema{s}, nil
}

// Violation is one thing wrong with a value.
type Violation struct {
	// Path leads to the place in the value: keys and indices; nil for the value
	// as a whole.
	Path []string
	Text string
	// Typed is true when a value of another type may be right there.
	Typed bool
	// Unknown are the keys that are not allowed, when that is what is wrong.
	Unknown []string
}

// String is the place and what is wrong there.
func (v Violation) String() string {
	if len(v.Path) == 0 {
		return v.Text
	}
	return "/" + strings.Join(v.Path, "/") + ": " + v.Text
}

// Validate returns what is wrong with a value, in the order of the places; nil
// when nothing is. The value is as [encoding/json] gives it, numbers as
// json.Number or any number.
func (s *Schema) Validate(value any) []Violation {
	err := s.schema.Validate(value)
	if err == nil {
		return nil
	}
	wrong, ok := errors.AsType[*lib.ValidationError](err)
	if !ok {
		return []Violation{{Text: err.Error()}}
	}
	var out []Violation
	for _, leaf := range leaves(wrong) {
		v := Violation{Path: leaf.InstanceLocation, Text: say(leaf)}
		switch k := leaf.ErrorKind.(type) {
		case *kind.Type, *kind.Enum, *kind.Const:
			v.Typed = true
		case *kind.AdditionalProperties:
			v.Unknown = k.Properties
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Violation) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(out, func(a, b Violation) bool { return a.String() == b.String() })
}

// ValidateJSON is [Schema.Validate] for a value as JSON text; nothing is null.
// Text that is no JSON is a violation.
func (s *Schema) ValidateJSON(text []byte) []Violation {
	if len(text) == 0 {
		return s.Validate(nil)
	}
	v, err := lib.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return []Violation{{Text: "it is not JSON: " + err.Error()}}
	}
	return s.Validate(v)
}

// maxShown is how many violations a text names.
const maxShown = 5

// Text puts violations into one line.
func Text(found []Violation) string {
	var b strings.Builder
	for i, v := range found {
		if i == maxShown {
			b.WriteString("; and " + strconv.Itoa(len(found)-i) + " more")
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(v.String())
	}
	return b.String()
}

// leaves are the errors that have no more exact ones below them.
func leaves(e *lib.ValidationError) []*lib.ValidationError {
	if len(e.Causes) == 0 {
		return []*lib.ValidationError{e}
	}
	var out []*lib.ValidationError
	for _, c := range e.Causes {
		out = append(out, leaves(c)...)
	}
	return out
}

func say(e *lib.ValidationError) string {
	return strings.ReplaceAll(e.ErrorKind.LocalizedString(message.NewPrinter(language.English)), "'", "")
}
