package reload

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/sensor-engine/engine/specs"
)

// storeVersion is the version of the stored form.
const storeVersion = 1

// stored is the accepted set as it is kept: text, as the files had it, so that
// another version of the program understands it as it would understand a file.
type stored struct {
	Version   int              `json:"version"`
	Resources []storedResource `json:"resources"`
}

type storedResource struct {
	Kind specs.Kind `json:"kind"`
	Name string     `json:"name"`
	File string     `json:"file"`
	Line int        `json:"line"`
	Col  int        `json:"col"`
	// LastSeen is the file it was last defined in, when that is another.
	LastSeen string `json:"lastSeen,omitempty"`
	Source   string `json:"source"`
}

// Encode returns the accepted set in the form to store, compressed. Equal sets
// from equal places give equal bytes. Secrets are references in specs, so the
// bytes hold no secret values.
func (r *Reconciler) Encode() ([]byte, error) {
	s := stored{Version: storeVersion, Resources: make([]storedResource, 0, len(r.accepted))}
	for _, ref := range slices.SortedFunc(maps.Keys(r.accepted), compareRefs) {
		res := r.accepted[ref]
		sr := storedResource{
			Kind: ref.Kind, Name: ref.Name, Source: res.Source,
			File: res.Pos.File, Line: res.Pos.Line, Col: res.Pos.Col,
		}
		if last := r.lastSeen[ref]; last != sr.File {
			sr.LastSeen = last
		}
		s.Resources = append(s.Resources, sr)
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if err := json.NewEncoder(z).Encode(s); err != nil {
		return nil, fmt.Errorf("encode the accepted specs: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("encode the accepted specs: %w", err)
	}
	return out.Bytes(), nil
}

// Restore makes a stored set the accepted one; call it before the first
// [Reconciler.Next]. load is [specs.Loader.LoadSource]. Resources that do not
// load any more, after an upgrade, are left out; lost says why. On an error
// nothing was restored.
func (r *Reconciler) Restore(data []byte, load func(specs.Pos, string) *specs.Loaded) (lost specs.Diagnostics, err error) {
	s, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("the stored specs are damaged: %w", err)
	}
	if s.Version != storeVersion {
		return nil, fmt.Errorf("the stored specs have version %d, this program reads %d: use the program that wrote them", s.Version, storeVersion)
	}
	accepted := make(map[specs.Ref]*specs.Resource, len(s.Resources))
	lastSeen := make(map[specs.Ref]string, len(s.Resources))
	for _, sr := range s.Resources {
		ref := specs.Ref{Kind: sr.Kind, Name: sr.Name}
		l := load(specs.Pos{File: sr.File, Line: sr.Line, Col: sr.Col}, sr.Source)
		if len(l.Resources) != 1 || l.Resources[0].Ref() != ref {
			lost = append(lost, l.Diagnostics...)
			continue
		}
		accepted[ref], lastSeen[ref] = l.Resources[0], sr.File
		if sr.LastSeen != "" {
			lastSeen[ref] = sr.LastSeen
		}
	}
	r.accepted, r.lastSeen = accepted, lastSeen
	return lost.Sort(), nil
}

func decode(data []byte) (stored, error) {
	var s stored
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return s, err
	}
	text, err := io.ReadAll(z) // to the end: that is where the checksum is
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(text, &s)
}
