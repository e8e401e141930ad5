"""Integer execution of exported QDQ graphs: what an integer kernel computes, bit for bit."""
