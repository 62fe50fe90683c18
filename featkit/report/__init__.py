"""Tables, plots, 3D scene and match pictures in one self-contained html page. The only package that imports plotly."""
