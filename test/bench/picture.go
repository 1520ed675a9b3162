package main

import (
	"bytes"
	"fmt"
	"html"
)

// picture draws ratios as bars; those over full scale are cut, with their
// number beside them. The card has its own background, so that it reads on
// light and dark pages.
func picture(vs []*value) []byte {
	const (
		width, top, step = 900, 70, 26
		left, scale      = 430, 200 // where 0 is, and how far from it 1 is
		most             = 2
	)
	height := top + step*len(vs) + 46
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="t d" font-family="ui-sans-serif, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">`+"\n", width, height, width, height)
	b.WriteString(`<title id="t">Performance of the engine, as ratios</title>` + "\n<desc id=\"d\">")
	for i, v := range vs {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(html.EscapeString(v.Text + " " + v.String()))
	}
	fmt.Fprintf(&b, ".</desc>\n"+`<rect x="1" y="1" width="%d" height="%d" rx="14" fill="#f8fafc" stroke="#cbd5e1"/>`+"\n", width-2, height-2)
	fmt.Fprintf(&b, `<text x="24" y="36" font-size="15" font-weight="600" fill="#0f172a">Ratios, medians of the rounds</text>`+"\n")
	for i, legend := range []struct{ fill, text string }{{"#0369a1", "more is better"}, {"#a16207", "less is better"}} {
		x := left + 150*i
		fmt.Fprintf(&b, `<rect x="%d" y="26" width="12" height="12" rx="3" fill="%s"/><text x="%d" y="36" font-size="12.5" fill="#334155">%s</text>`+"\n", x, legend.fill, x+18, legend.text)
	}
	fmt.Fprintf(&b, `<path d="M%d 25 V39" stroke="#b91c1c" stroke-width="2"/><text x="%d" y="36" font-size="12.5" fill="#334155">budget</text>`+"\n", left+306, left+315)
	bottom := top + step*len(vs)
	for _, at := range []float64{0, 0.5, 1, 1.5, 2} {
		x := left + at*scale
		fmt.Fprintf(&b, `<path d="M%.1f %d V%d" stroke="#cbd5e1"/><text x="%.1f" y="%d" text-anchor="middle" font-size="11.5" fill="#334155">%g</text>`+"\n", x, top-8, bottom, x, bottom+18, at)
	}
	for i, v := range vs {
		y := top + step*i
		fill := "#0369a1"
		if v.Lower {
			fill = "#a16207"
		}
		w := min(v.Value, most) * scale
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" font-size="12.5" fill="#0f172a">%s</text>`, left-10, y+13, html.EscapeString(v.Text))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="16" rx="3" fill="%s"/>`, left, y, w, fill)
		end := w
		if v.Budget > 0 && v.Budget <= most {
			end = max(end, v.Budget*scale)
			fmt.Fprintf(&b, `<path d="M%.1f %d V%d" stroke="#b91c1c" stroke-width="2"/>`, left+v.Budget*scale, y-3, y+19)
		}
		number := v.String()
		if v.Value > most {
			number = "→ " + number
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" font-size="12.5" font-weight="600" fill="#0f172a">%s</text>`+"\n", left+end+7, y+13, number)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
