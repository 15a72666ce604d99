/* Before uPlot, which draws as many pixels as the screen has: paper has more, and a page may be zoomed. */
window.devicePixelRatio = Math.max(2, window.devicePixelRatio || 1);
