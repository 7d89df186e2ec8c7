"""The least contrast of text with the ground behind it, on a page, by the formula of WCAG 2: a script for a browser."""

CONTRAST = """(selector) => {
    const luminance = (css) => {
        const [r, g, b] = css.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const css = getComputedStyle(element).backgroundColor;
        return /, 0\\)$/.test(css) && element.parentElement ? ground(element.parentElement) : css;
    };
    return Math.min(...[...document.querySelectorAll(selector)].map((element) => {
        const [one, two] = [luminance(getComputedStyle(element).color), luminance(ground(element))];
        return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    }));
}"""
