package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/jsonschema"
	"github.com/sensor-engine/engine/triggers"
)

// CodeInvalidSchema marks a JSON Schema that is none.
const CodeInvalidSchema specs.Code = "invalid-schema"

// function compiles what the spec of a Function has to be compiled of.
func (c *Compiler) function(ref specs.Ref, r *specs.Resource, spec *specs.Function) compiledFunction {
	dir := filepath.Dir(r.Pos.File)
	var files []string
	for _, shape := range []*specs.Shape{spec.Input, spec.Output} {
		if file, ok := schemaFile(shape, dir); ok {
			files = append(files, file)
		}
	}
	stamp := c.stamps.Stamp(files)
	was, known := c.functions[ref]
	if known = known && was.hash == r.Hash; known && was.stamp == stamp && len(was.found) == 0 {
		return was
	}
	compiled, found := triggers.CompileConfig(spec.Call.Config)
	for i := range found {
		found[i].Ref = ref
	}
	cf := compiledFunction{hash: r.Hash, stamp: stamp, compiled: compiled, found: found}
	for _, s := range []struct {
		key   string
		shape *specs.Shape
		into  **jsonschema.Schema
	}{{"input.schema", spec.Input, &cf.input}, {"output.schema", spec.Output, &cf.output}} {
		if s.shape != nil {
			ck := specs.NewChecker(ref, "spec", spec.Places)
			*s.into = compileSchema(s.key, s.shape, dir, ref, ck)
			cf.found = append(cf.found, ck.Found()...)
		}
	}
	if known && was.valid() && cf.found.HasErrors() {
		// Only a file beside the spec can have changed: what it was stays in force.
		was.found = stillInForce(cf.found)
		cf = was
	}
	c.functions[ref] = cf
	return cf
}

// valid reports whether it can be used.
func (f *compiledFunction) valid() bool { return !f.found.HasErrors() }

// stillInForce turns errors in files beside a spec that was in use before into
// warnings.
func stillInForce(found specs.Diagnostics) specs.Diagnostics {
	out := slices.Clone(found)
	for i := range out {
		if out[i].Severity == specs.Error {
			out[i].Severity = specs.Warning
			out[i].Message += "; what was there before stays in force until the engine stops"
		}
	}
	return out
}

// schemaFile is the file that a shape names instead of a schema.
func schemaFile(shape *specs.Shape, dir string) (string, bool) {
	if shape == nil {
		return "", false
	}
	name, ok := shape.Schema.Root.(string)
	return triggers.Join(dir, name), ok
}

// compileSchema compiles the schema at key, or reports to ck what is wrong with
// it, at its place in the spec or in the file that the spec names.
func compileSchema(key string, shape *specs.Shape, dir string, ref specs.Ref, ck *specs.Checker) *jsonschema.Schema {
	root, place := shape.Schema.Root, ck
	file, named := schemaFile(shape, dir)
	if named {
		text, err := os.ReadFile(file)
		if err != nil {
			ck.Errorf(key, specs.CodeUnreadable, "a path is relative to this file", "the schema cannot be read: %v", withoutPath(err, file))
			return nil
		}
		data, places, found := specs.ReadData(file, text)
		if found.HasErrors() {
			ck.Add(found...)
			return nil
		}
		root, place = data, specs.NewChecker(ref, key, places)
	}
	schema, err := jsonschema.Compile(root)
	if err == nil {
		return schema
	}
	at, text := "", err.Error()
	if wrong, ok := errors.AsType[*jsonschema.Error](err); ok {
		at, text = placeIn(root, wrong.Path), wrong.Text
	}
	if named {
		place.Errorf(at, CodeInvalidSchema, "", "the schema is not valid: %s", text)
		ck.Add(place.Found()...)
		return nil
	}
	if at != "" && !strings.HasPrefix(at, "[") {
		at = "." + at
	}
	ck.Errorf(key+at, CodeInvalidSchema, "", "the schema is not valid: %s", text)
	return nil
}

// withoutPath is the reason in an error about a file, with the file as given.
func withoutPath(err error, file string) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return fmt.Errorf("%s: %w", file, pe.Err)
	}
	return err
}

// placeIn turns keys and indices into a path as diagnostics have it.
func placeIn(root any, keys []string) string {
	path := ""
	for _, key := range keys {
		if list, ok := root.([]any); ok {
			path += "[" + key + "]"
			if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(list) {
				root = list[i]
			}
			continue
		}
		m, _ := root.(map[string]any)
		root = m[key]
		if path != "" {
			path += "."
		}
		path += key
	}
	return path
}

// calls finds what is wrong with the functions that a resource declares or
// calls and only the files beside it, or the kind, can tell.
func (c *Compiler) calls(set *specs.Set, ref specs.Ref, r *specs.Resource) specs.Diagnostics {
	found := c.findCalls(set, ref, r)
	switch {
	case !found.HasErrors():
		c.passed[ref] = r.Hash
	case c.passed[ref] == r.Hash:
		found = stillInForce(found)
	}
	return found
}

func (c *Compiler) findCalls(set *specs.Set, ref specs.Ref, r *specs.Resource) specs.Diagnostics {
	dir := filepath.Dir(r.Pos.File)
	var found specs.Diagnostics
	check := func(call *specs.Call, path string) {
		if f := c.catalog.Functions.Lookup(call.Kind); f != nil && f.Check != nil {
			ck := specs.NewChecker(ref, path+"."+call.Kind, call.Places)
			f.Check(call.Config, dir, ck)
			found = append(found, ck.Found()...)
		}
	}
	unused := func(ck *specs.Checker, field, kind string) {
		if f := c.catalog.Functions.Lookup(kind); f != nil && !f.Grants {
			ck.Errorf(field, specs.CodeInvalidValue, "write {secret: {name, key}} where a value belongs", "functions of kind %s are not handed secrets by name", kind)
		}
	}
	if fn, ok := r.Spec.(*specs.Function); ok {
		check(&fn.Call, "spec")
		if len(fn.Secrets) > 0 {
			ck := specs.NewChecker(ref, "spec", fn.Places)
			unused(ck, "secrets", fn.Call.Kind)
			found = append(found, ck.Found()...)
		}
		return found
	}
	if ep, ok := r.Spec.(*specs.Endpoint); ok {
		if fr := set.Resources[specs.Ref{Kind: specs.KindFunction, Name: ep.Function}]; fr != nil && len(ep.Secrets) > 0 {
			ck := specs.NewChecker(ref, "spec", ep.Places)
			unused(ck, "secrets", fr.Spec.(*specs.Function).Call.Kind)
			found = append(found, ck.Found()...)
		}
		return found
	}
	_, s := r.Sensor()
	if s == nil {
		return nil
	}
	for path, t := range s.Calls() {
		if r.Kind == specs.KindSubscription {
			path = strings.Replace(path, "spec.triggers[0]", "spec", 1)
		}
		kind := ""
		if t.Inline != nil {
			check(t.Inline, path)
			kind = t.Inline.Kind
		} else if fr := set.Resources[specs.Ref{Kind: specs.KindFunction, Name: t.Function}]; fr != nil {
			kind = fr.Spec.(*specs.Function).Call.Kind
		}
		if len(t.Secrets) > 0 {
			ck := specs.NewChecker(ref, path, map[string]specs.Pos{"": t.Pos})
			unused(ck, "secrets", kind)
			found = append(found, ck.Found()...)
		}
	}
	return found
}

// filesOf are the files and directories a function is made from.
func (c Catalog) filesOf(call *specs.Call, dir string) []string {
	if f := c.Functions.Lookup(call.Kind); f != nil && f.Files != nil {
		return f.Files(call.Config, dir)
	}
	return nil
}

// contentOf identifies the content of what a function is made from.
func (c *Compiler) contentOf(call *specs.Call, dir string) string {
	return c.stamps.Stamp(c.catalog.filesOf(call, dir))
}

// files are the files and directories that the functions of a set are made
// from, those with their schemas too.
func (c *Compiler) files(set *specs.Set) []string {
	var files []string
	for _, r := range set.Resources {
		dir := filepath.Dir(r.Pos.File)
		if fn, ok := r.Spec.(*specs.Function); ok {
			files = append(files, c.catalog.filesOf(&fn.Call, dir)...)
			for _, shape := range []*specs.Shape{fn.Input, fn.Output} {
				if file, ok := schemaFile(shape, dir); ok {
					files = append(files, file)
				}
			}
			continue
		}
		if _, s := r.Sensor(); s != nil {
			for _, t := range s.Calls() {
				if t.Inline != nil {
					files = append(files, c.catalog.filesOf(t.Inline, dir)...)
				}
			}
		}
	}
	return files
}
