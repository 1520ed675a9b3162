// Guest is a program for the sandbox that does what its first argument says.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

func main() {
	what, args := os.Args[1], os.Args[2:]
	switch what {
	case "echo":
		must(io.Copy(os.Stdout, os.Stdin))
	case "answer", "refuse": // a line by the protocol of workers
		var in struct {
			ID      int
			Context struct {
				Key     string
				Attempt int
				Event   struct{ Type string }
			}
			Payload json.RawMessage
		}
		must(0, json.NewDecoder(os.Stdin).Decode(&in))
		fmt.Fprintln(os.Stderr, "called")
		if what == "refuse" {
			must(fmt.Printf(`{"id":%d,"error":{"type":"InputError","message":"no name"}}`+"\n", in.ID))
			return
		}
		text := fmt.Sprintf("%s %s %d %s", in.Payload, in.Context.Key, in.Context.Attempt, in.Context.Event.Type)
		must(fmt.Printf(`{"id":%d,"payload":%q,"events":[{"type":"t","subject":"s"}]}`+"\n", in.ID, text))
	case "key":
		fmt.Print(os.Getenv("ENGINE_KEY"))
	case "length":
		n, err := io.Copy(io.Discard, os.Stdin)
		must(0, err)
		fmt.Print(n)
	case "line": // the same by the protocol of workers
		line, err := io.ReadAll(os.Stdin)
		must(0, err)
		_, payload, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("}\n")), []byte(`"payload":`))
		switch args[0] { // it may be large: not parsed
		case "length":
			must(fmt.Printf(`{"id":1,"payload":%d}`, len(payload)))
			return
		case "huge":
			must(fmt.Print(`{"id":1,"payload":"`))
			for range 64 {
				must(os.Stdout.Write(bytes.Repeat([]byte("x"), 1<<20)))
			}
			must(fmt.Print(`"}`))
			return
		}
		var in struct {
			ID      int
			Context struct{ Key string }
			Payload json.RawMessage
		}
		must(0, json.Unmarshal(line, &in))
		answer := any(in.Payload)
		if args[0] == "key" {
			answer = in.Context.Key
		}
		b, err := json.Marshal(map[string]any{"id": in.ID, "payload": answer})
		must(0, err)
		must(os.Stdout.Write(b))
	case "crash": // at a step, with an answer that would do
		answer := `{"id":1,"payload":1}`
		switch args[0] {
		case "while it reads":
			must(io.CopyN(io.Discard, os.Stdin, 1000))
		case "after it has read":
			must(io.Copy(io.Discard, os.Stdin))
		case "while it answers":
			must(os.Stdout.WriteString(answer[:9]))
		case "after its answer":
			must(os.Stdout.WriteString(answer + "\n"))
		}
		panic("on purpose")
	case "environ":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "args":
		fmt.Println(strings.Join(os.Args, " "))
	case "exit":
		fmt.Fprintln(os.Stderr, "that was it")
		os.Exit(3)
	case "panic":
		panic("on purpose")
	case "loop":
		for {
		}
	case "sleep":
		time.Sleep(time.Hour)
	case "clock":
		begin := time.Now()
		time.Sleep(time.Millisecond)
		fmt.Println(begin.Year() >= 2024, time.Since(begin) >= time.Millisecond)
	case "grow":
		var all [][]byte
		for {
			b := make([]byte, 8<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "flood":
		w := bufio.NewWriterSize(os.Stdout, 1<<16)
		for range 1 << 14 {
			fmt.Fprint(w, strings.Repeat("x", 1<<12))
		}
		w.Flush()
		fmt.Fprint(os.Stderr, strings.Repeat("y", 1<<18))
	case "read":
		b, err := os.ReadFile(args[0])
		must(0, err)
		os.Stdout.Write(b)
	case "write":
		must(0, os.WriteFile(args[0], []byte(args[1]), 0o600))
	case "list":
		entries, err := os.ReadDir(args[0])
		must(0, err)
		for _, e := range entries {
			fmt.Println(e.Name(), e.IsDir())
		}
	case "files": // everything a program does with files
		dir := args[0]
		must(0, os.Mkdir(dir+"/sub", 0o700))
		f, err := os.OpenFile(dir+"/sub/a", os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
		must(0, err)
		must(f.WriteString("hello world"))
		must(0, f.Truncate(5))
		must(0, f.Sync())
		must(f.Seek(0, io.SeekStart))
		b, err := io.ReadAll(f)
		must(fmt.Println(string(b)))
		must(f.WriteAt([]byte("J"), 0))
		must(0, f.Close())
		must(0, os.Rename(dir+"/sub/a", dir+"/b"))
		must(0, os.Link(dir+"/b", dir+"/c"))
		must(0, os.Chtimes(dir+"/b", time.Unix(1, 0), time.Unix(2, 0)))
		info, err := os.Stat(dir + "/b")
		must(fmt.Println(info.Size(), info.ModTime().Unix()))
		must(0, os.Remove(dir+"/sub"))
		must(0, os.Remove(dir+"/c"))
		f, err = os.OpenFile(dir+"/b", os.O_APPEND|os.O_WRONLY, 0)
		must(0, err)
		must(f.WriteString("!"))
		must(0, f.Close())
		b, err = os.ReadFile(dir + "/b")
		must(fmt.Println(string(b), err))
		_, err = os.OpenFile(dir+"/b", os.O_CREATE|os.O_EXCL, 0o600)
		must(fmt.Println(os.IsExist(err)))
		_, err = os.Stat(dir + "/absent")
		must(fmt.Println(os.IsNotExist(err)))
		must(fmt.Println(os.Symlink("b", dir+"/link") != nil))
	case "open": // as many as there may be
		n := 0
		for {
			if _, err := os.Open(args[0]); err != nil {
				fmt.Println(n, err)
				return
			}
			n++
		}
	default:
		os.Exit(99)
	}
}

func must(_ any, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
