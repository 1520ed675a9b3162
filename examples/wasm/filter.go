// Filter looks at a comment and says whether it may be published: a program of
// somebody else, so it runs in a sandbox. It knows nothing of the engine: JSON
// comes on stdin, JSON goes to stdout, and anything else to stderr.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type comment struct {
	Author string `json:"author"`
	Text   string `json:"text"`
}

type verdict struct {
	OK     bool   `json:"ok"`
	Text   string `json:"text"`
	Reason string `json:"reason,omitempty"`
}

func main() {
	var c comment
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		fmt.Fprintln(os.Stderr, "this is no comment:", err)
		os.Exit(1)
	}
	v := judge(c, strings.Fields(os.Getenv("WORDS")))
	fmt.Fprintf(os.Stderr, "comment of %q: ok %v\n", c.Author, v.OK)
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		os.Exit(1)
	}
}

// judge hides the words; a comment with links, or with nothing left, is refused.
func judge(c comment, words []string) verdict {
	text := c.Text
	for _, w := range words {
		for {
			i := strings.Index(strings.ToLower(text), w)
			if i < 0 {
				break
			}
			text = text[:i] + strings.Repeat("*", len(w)) + text[i+len(w):]
		}
	}
	switch {
	case strings.Contains(text, "://"):
		return verdict{Reason: "it has links"}
	case strings.Trim(text, "* \n") == "":
		return verdict{Reason: "nothing is left of it"}
	}
	return verdict{OK: true, Text: text}
}
