package specs

// ReadData reads plain data, YAML or JSON, of one document from memory; name
// stands for the file. places are those of the data and everything in it, by
// path ("" for the whole). When there are errors, root is nil.
func ReadData(name string, data []byte) (root any, places map[string]Pos, found Diagnostics) {
	src := &source{file: name}
	docs, ok := src.readDocuments(data, Loader{}.limits())
	places = map[string]Pos{}
	switch {
	case !ok:
	case len(docs) == 0:
		src.report(1, 1, CodeMissingKey, "", "the file is empty")
	case len(docs) > 1:
		src.report(docs[1].root.line, docs[1].root.col, CodeInvalidValue, "one document a file", "there is more than one document")
	default:
		d := &decoder{source: src, table: typeTable{}}
		root = d.free(docs[0].root, "")
		d.places(docs[0].root, "", places)
	}
	if src.errors > 0 {
		root = nil
	}
	return root, places, src.found
}
